"""Every field of vLLM's configuration, judged: does it change the bytes of a KV block?

`COUNTS` has the fields that do; their values go into the namespace. `IGNORED` has those that do
not, under the reason why. A field that is in neither (of a newer vLLM, or of somebody's own)
counts: sharing is lost, and no byte is wrong. `tests/connectors/vllm/real/test_identity.py`
lists the fields of the vLLM it runs in and fails while one of them is not judged here.

How it is judged. What changes the function from tokens to KV counts: weights, number formats,
positions, masks, which layers see which tokens. What only changes the order of sums does not: batch
shapes, split sizes, compilation and the tiling of a kernel change the last bits of a value between
two requests of one engine, too. A kernel or backend that somebody chose by name counts, for some
work in another number format. What is hashed with the tokens (images, prompts, salts) or comes
after the KV (sampling, pooling) does not. Weights and configuration files count by their content
(files.py) and not by their names; what the model's own configuration holds counts as it is in
memory, whatever made it (identity.py).
"""

CONTENT = "names files, which count by their content"
MEMORY = "its effect is in hf_config, which counts as it is in memory"
SUMS = "changes the order of sums at most, as another batch does"
SIZE = "a size or a limit: says how much, not what"
PLACE = "says where and by whom the work is done"
SPEED = "says how fast, or what is kept ready"
OUTPUT = "acts on what comes after the KV"
INPUT = "acts on what becomes tokens or mm hashes, which the keys hold"
ENGINE = "names this engine, or where it talks to others"
WATCH = "what is logged, measured or traced"
NAMED = "a fact of its own in the namespace"
REGISTERED = "is seen in the tensors that are registered, and in who writes them (contents.py)"
ADAPTER = "counts with each adapter (adapters.py)"

COUNTS: dict[str, str] = {
    "VllmConfig": """model_config cache_config parallel_config load_config attention_config
        mamba_config kernel_config speculative_config diffusion_config device_config
        additional_config""",
    "ModelConfig": """runner convert trust_remote_code dtype is_submodel_config
        word_embeddings_untied_by_checkpoint code_revision quantization quantization_config
        disable_sliding_window model_class_overrides config_format model_impl multimodal_config""",
    "MultiModalConfig": """language_model_only mm_processor_kwargs mm_device_do_normalize
        mm_hasher_algorithm mm_encoder_only mm_encoder_attn_backend mm_encoder_attn_dtype
        mm_encoder_fp8_scale_path video_pruning_rate video_pruning_method media_io_kwargs""",
    "CacheConfig": """cache_dtype sliding_window kv_cache_dtype_skip_layers mamba_cache_dtype
        mamba_ssm_cache_dtype mamba_cache_mode enable_mamba_shared_prefix_checkpoint
        replayssm_buffer_len use_replayssm use_kda_recoverssm kv_sharing_fast_prefill
        swa_bounded_replay enable_mamba_fine_grained_prefix_cache""",
    "ParallelConfig": """pipeline_parallel_size prefill_context_parallel_size
        decode_context_parallel_size dcp_kv_cache_interleave_size cp_kv_cache_interleave_size
        all2all_backend""",
    "LoadConfig": "load_format model_loader_extra_config ignore_patterns",
    "AttentionConfig": """minimax_m3_msa_decode_backend backend_per_kind flash_attn_version
        use_trtllm_attention disable_flashinfer_q_quantization mla_prefill_backend
        use_prefill_query_quantization trtllm_ragged_backend indexer_kv_dtype indexer_sparse_logits
        minimax_m3_indexer_cp hisparse_config use_non_causal sparse_mla_force_mqa
        use_fp4_indexer_cache use_prefill_decode_attention""",
    "HiSparseConfig": "device_buffer_size eager_host_mirror",
    "MambaConfig": """backend enable_stochastic_rounding stochastic_rounding_philox_rounds
        ssu_algorithm""",
    "KernelConfig": """monokernel moe_backend sparse_indexer_topk_backend linear_backend
        linear_backend_per_quant enable_bf16x3_router_gemm""",
    "LoRAConfig": """fully_sharded_loras lora_dtype target_modules enable_tower_connector_lora
        enable_mixed_moe_lora_format enable_moe_shared_loras max_lora_cls_labels""",
    "SpeculativeConfig": """num_speculative_tokens method draft_tensor_parallel_size quantization
        moe_backend attention_backend kv_cache_dtype max_model_len code_revision
        index_share_for_mtp_iteration draft_lm_head_quantization use_heterogeneous_vocab
        parallel_drafting draft_model_config draft_load_config""",
    "DiffusionConfig": "canvas_length max_denoising_steps",
    "DeviceConfig": "device_type",
    "QuantizationConfigArgs": "linear moe ignore targets",
    "QuantSpec": "weight activation",
}

IGNORED: dict[str, dict[str, str]] = {
    "VllmConfig": {
        SPEED: """scheduler_config offload_config engram_config compilation_config
            optimization_level performance_mode ec_transfer_config ec_manager_config
            watchdog_config shutdown_timeout weight_transfer_config""",
        WATCH: "observability_config logging_config profiler_config",
        ADAPTER: "lora_config",
        ENGINE: "instance_id kv_transfer_config kv_events_config",
        OUTPUT: """structured_outputs_config reasoning_config watermark_config
            aux_output_config""",
        "made of quantization and of what hf_config holds of it": "quant_config",
    },
    "ModelConfig": {
        CONTENT: "model model_weights hf_config_path revision",
        MEMORY: "hf_overrides",
        NAMED: "hf_config hf_text_config max_model_len",
        INPUT: """tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init
            allowed_local_media_path allowed_media_domains enable_prompt_embeds io_processor_plugin
            renderer_num_workers hf_token""",
        OUTPUT: """return_sampling_mask max_logprobs logprobs_mode use_fp64_gumbel
            enable_trace_replay generation_config override_generation_config logits_processors
            pooler_config served_model_name enable_return_routed_experts""",
        SPEED: """enforce_eager enable_sleep_mode sleep_preserve_parameter_names
            sleep_mode_backend sleep_mode_offload_cudagraph enable_nccl_comm_suspend
            enable_cumem_allocator""",
        SUMS: "disable_cascade_attn",
        SIZE: "spec_target_max_model_len",
        "only lets a quantization be chosen, and that counts": "allow_deprecated_quantization",
        "draws samples and dummy weights, and an engine with those shares nothing": "seed",
    },
    "MultiModalConfig": {
        SIZE: """limit_per_prompt mm_processor_cache_gb mm_shm_cache_max_object_size_mb
            mm_encoder_fp8_scale_save_margin mm_ipc_gpu_memory_gb""",
        SPEED: "mm_processor_cache_type mm_tensor_ipc skip_mm_profiling",
        SUMS: "mm_encoder_tp_mode",
        INPUT: "enable_mm_embeds interleave_mm_strings allow_missing_mm_embeddings",
        OUTPUT: "mm_encoder_fp8_scale_save_path",
    },
    "CacheConfig": {
        SIZE: """gpu_memory_utilization num_gpu_blocks_override num_gpu_blocks num_cpu_blocks
            simple_cpu_offload_num_blocks kv_cache_size_tokens kv_cache_max_concurrency
            kv_cache_memory_bytes kv_offloading_size mamba_page_size_padded skip_page_size_padded
            mamba_block_size""",
        NAMED: """block_size user_specified_block_size user_specified_mamba_block_size
            _block_size_resolved effective_attention_block_size hash_block_size prefix_match_unit
            cache_hit_alignment_tokens prefix_caching_hash_algo""",
        REGISTERED: "kv_cache_layout is_attention_free",
        SPEED: "enable_prefix_caching prefix_cache_retention_interval kv_offloading_backend",
    },
    "ParallelConfig": {
        PLACE: """data_parallel_size data_parallel_size_local data_parallel_rank
            data_parallel_rank_local data_parallel_master_ip data_parallel_rpc_port
            dp_sync_interval data_parallel_master_port data_parallel_backend
            data_parallel_external_lb data_parallel_hybrid_lb data_parallel_index
            max_parallel_loading_workers enable_elastic_ep elastic_ep_max_dp_size
            ray_workers_use_nsight ray_runtime_env placement_group distributed_executor_backend
            worker_cls sd_worker_cls worker_extension_cls master_addr master_port node_rank nnodes
            numa_bind numa_bind_nodes numa_bind_cpus assigned_physical_gpu_ids
            distributed_timeout_seconds cpu_distributed_timeout_seconds rank world_size
            _data_parallel_master_port_list _coord_store_port _api_process_count _api_process_rank
            enable_fault_tolerance fault_tolerance_config""",
        SUMS: """enable_hc_sp enable_expert_parallel enable_batch_sharded_sampling
            enable_ep_weight_filter enable_eplb eplb_config expert_placement_strategy
            disable_custom_all_reduce dcp_comm_backend dcp_q_replicate""",
        SPEED: """enable_shm_tensor_arena enable_dbo ubatch_size dbo_decode_token_threshold
            dbo_prefill_token_threshold disable_nccl_for_dp_synchronization""",
        "follows from the model": "is_moe_model",
        "is said with the registered memory, where it matters (ranks.py)": "tensor_parallel_size",
        "lets an interleave be chosen, and that counts": "_allow_auto_resolve_cp_interleave_size",
    },
    "LoadConfig": {
        SPEED: """safetensors_load_strategy safetensors_prefetch_num_threads
            safetensors_prefetch_block_size use_tqdm_on_load""",
        PLACE: "download_dir device pt_load_map_location",
    },
    "AttentionConfig": {
        REGISTERED: "backend",
        SUMS: """flash_attn_max_num_splits_for_cuda_graph tokenspeed_mla_min_split_kv
            tq_max_kv_splits_for_cuda_graph indexer_tp_shard_min_rows
            sparse_mla_prefill_workspace_factor flex_attn_block_m flex_attn_block_n
            flex_attn_q_block_size flex_attn_kv_block_size""",
    },
    "KernelConfig": {
        SUMS: "ir_op_priority",
        SPEED: """enable_flashinfer_autotune enable_rocm_segmented_attn_autotune
            enable_cutedsl_warmup enable_jit_warmup""",
    },
    "LoRAConfig": {
        SIZE: "max_lora_rank max_loras max_cpu_loras",
        CONTENT: "default_mm_loras",
        SPEED: "specialize_active_lora",
    },
    "SpeculativeConfig": {
        CONTENT: "model revision",
        SPEED: """enforce_eager disable_padded_drafter_batch disable_eagle_block_drop
            use_local_argmax_reduction num_speculative_tokens_per_batch_size""",
        OUTPUT: """prompt_lookup_max prompt_lookup_min suffix_decoding_max_tree_depth
            suffix_decoding_max_cached_requests suffix_decoding_max_spec_factor
            suffix_decoding_min_token_prob rejection_sample_method synthetic_acceptance_rates
            synthetic_acceptance_length enable_adaptive_verification draft_sample_method
            dspark_draft_topk xpress_topc fly_window_size fly_entropy_threshold
            fly_entropy_top_k""",
        PLACE: "tensor_parallel_size draft_parallel_config target_parallel_config",
        "the model that is served, judged by itself": "target_model_config",
        "changes which hashes there are, and they are the keys": "disable_lookahead_block_hashes",
    },
    "DeviceConfig": {PLACE: "device"},
}

UNREAD: dict[str, str] = {
    "AudioDummyOptions": SIZE,
    "AuxOutputConfig": OUTPUT,
    "BaseDummyOptions": SIZE,
    "CompilationConfig": SUMS,
    "DynamicShapesConfig": SUMS,
    "ECTransferConfig": PLACE,
    "EPLBConfig": PLACE,
    "EncoderCacheManagerConfig": PLACE,
    "EngramConfig": PLACE,
    "FaultToleranceConfig": PLACE,
    "ImageDummyOptions": SIZE,
    "IrOpPriorityConfig": SUMS,
    "KVEventsConfig": ENGINE,
    "KVTransferConfig": ENGINE,
    "LoggingConfig": WATCH,
    "ModelArchitectureConfig": MEMORY,
    "ObservabilityConfig": WATCH,
    "OffloadConfig": PLACE,
    "PassConfig": SUMS,
    "PoolerConfig": OUTPUT,
    "PrefetchOffloadConfig": PLACE,
    "ProfilerConfig": WATCH,
    "Range": SIZE,
    "ReasoningConfig": OUTPUT,
    "SchedulerConfig": SUMS,
    "SpeechToTextConfig": INPUT,
    "SpeechToTextParams": INPUT,
    "StructuredOutputsConfig": OUTPUT,
    "UVAOffloadConfig": PLACE,
    "VideoDummyOptions": SIZE,
    "WatchdogConfig": WATCH,
    "WatermarkConfig": OUTPUT,
    "WeightTransferConfig": PLACE,
}
"""Whole classes that are not read, and why; nothing that counts holds one of them. New weights that
arrive by a weight transfer are noticed in memory (live.py)."""

FILE_FIELDS = frozenset({"mm_encoder_fp8_scale_path"})
"""Fields that name a file which itself counts, by its content."""

ENVIRONMENT = frozenset(
    {
        "VLLM_FLOAT32_MATMUL_PRECISION",
        "VLLM_BATCH_INVARIANT",
        "VLLM_CPU_INT4_W4A8",
        "VLLM_USE_MODELSCOPE",
        "VLLM_MODEL_REDIRECT_PATH",
        "VLLM_PLUGINS",
        "VLLM_PP_LAYER_PARTITION",
        "VLLM_MLA_DISABLE",
        "VLLM_DISABLED_KERNELS",
        "VLLM_USE_HW_AGNOSTIC",
        "VLLM_MXFP4_EMULATION_DEQUANT_AT_LOAD",
        "VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD",
        "VLLM_MARLIN_INPUT_DTYPE",
        "VLLM_TEST_FORCE_FP8_MARLIN",
        "VLLM_HUMMING_ONLINE_QUANT_CONFIG",
        "VLLM_HUMMING_INPUT_QUANT_CONFIG",
        "VLLM_HUMMING_USE_F16_ACCUM",
        "VLLM_DEEPEPLL_NVFP4_DISPATCH",
        "VLLM_USE_DEEP_GEMM",
        "VLLM_MOE_USE_DEEP_GEMM",
        "VLLM_USE_DEEP_GEMM_E8M0",
        "VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER",
        "VLLM_B12X_MOE_FP4_FORCE_A16",
        "VLLM_USE_FLASHINFER_MOE_INT4",
        "VLLM_MOE_ROUTING_SIMULATION_STRATEGY",
        "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE",
        "VLLM_ROCM_MUSE_MOE_REDUCE_DTYPE",
        "VLLM_ROCM_MUSE_MOE_ONLINE_QUANT",
        "VLLM_ROCM_USE_AITER",
        "VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT",
        "VLLM_ROCM_USE_AITER_FP8BMM",
        "VLLM_ROCM_USE_AITER_FP4BMM",
        "VLLM_ROCM_USE_AITER_MOE_A4W4_DSV4",
        "VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4",
        "VLLM_ROCM_USE_AITER_FP4_ASM_GEMM",
        "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION",
        "VLLM_ROCM_QUICK_REDUCE_CAST_BF16_TO_FP16",
        "VLLM_ROCM_FP8_MFMA_PAGE_ATTN",
        "VLLM_FLASHINFER_MOE_A2A_LOW_PRECISION_COMBINE",
    }
)
"""Variables that choose a number format, a model, a routing or where a number lies. They count
where they are set."""


def ignored(kind: str) -> frozenset[str]:
    """Fields of a class that do not count."""
    return frozenset(name for names in IGNORED.get(kind, {}).values() for name in names.split())


def judged(kind: str) -> frozenset[str]:
    """All fields of a class that somebody has looked at."""
    return frozenset(COUNTS.get(kind, "").split()) | ignored(kind)
