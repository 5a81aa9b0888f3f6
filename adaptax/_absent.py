"""What optax has and adaptax has not: where a missing name is to be had.

Read when such a name is asked for, not at import. A test compares the names with optax's.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TRANSFORMATIONS = _names(
    """
    adabelief adadelta adan adaptive_grad_clip add_noise centralize fromage
    keep_params_nonnegative lars lbfgs noisy_sgd normalize_by_update_norm novograd
    optimistic_adam optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam rprop
    scale_by_adadelta scale_by_adan scale_by_backtracking_linesearch scale_by_belief
    scale_by_distance_over_gradients scale_by_lbfgs scale_by_novograd
    scale_by_optimistic_gradient scale_by_param_block_norm scale_by_polyak scale_by_radam
    scale_by_rprop scale_by_sign scale_by_sm3 scale_by_yogi scale_by_zoom_linesearch
    sign_sgd signum sm3 stateless_with_tree_map yogi zero_nans
    """
)

SCHEDULES = _names(
    """
    cosine_onecycle_schedule linear_onecycle_schedule piecewise_interpolate_schedule
    sgdr_schedule warmup_constant_schedule warmup_exponential_decay_schedule
    """
)

OTHERS = _names(
    """
    AdaptiveGradClipState AddDecayedWeightsState AddNoiseState ClipByGlobalNormState
    ClipState InjectHyperparamsState MaskOrFn MultiTransformState NonNegativeParamsState
    ScaleByAdaDeltaState ScaleByAdanState ScaleByBacktrackingLinesearchState
    ScaleByBeliefState ScaleByLBFGSState ScaleByNovogradState ScaleByRpropState
    ScaleBySM3State ScaleByTrustRatioState ScaleByZoomLinesearchState ScaleState
    ShouldSkipUpdateFunction TransformInitFn TransformUpdateExtraArgsFn TransformUpdateFn
    ZeroNansState ZoomLinesearchInfo assignment contrib convex_kl_divergence cosine_distance
    cosine_similarity ctc_loss ctc_loss_with_forward_probs experimental
    generalized_kl_divergence hinge_loss huber_loss init_empty_state kl_divergence l2_loss
    log_cosh losses matrix_inverse_pth_root microbatch microbatching multi_normal nnls
    ntxent per_example_global_norm_clip per_example_layer_norm_clip perturbations
    power_iteration projections safe_increment safe_int32_increment safe_norm
    safe_root_mean_squares safe_softmax_cross_entropy scale_gradient second_order
    sigmoid_binary_cross_entropy sigmoid_focal_loss smooth_labels softmax_cross_entropy
    softmax_cross_entropy_with_integer_labels squared_error value_and_grad_from_state
    """
)

# Of optax.contrib

CONTRIB_TRANSFORMATIONS = _names(
    """
    acprop ademamix adopt cocob dadapt_adamw differentially_private_aggregate dog dowg dpsgd
    galore madgrad mechanize momo momo_adam normalize reduce_on_plateau sam scale_by_acprop
    scale_by_ademamix scale_by_adopt scale_by_cocob scale_by_galore scale_by_madgrad
    scale_by_simplified_ademamix simplified_ademamix sophia split_real_and_imaginary
    """
)

CONTRIB_OTHERS = _names(
    """
    COCOBState DAdaptAdamWState DifferentiallyPrivateAggregateState DoGState DoWGState
    GaLoreDimensionNumbers GaLoreState HutchinsonState MadgradState MechanicState
    MomoAdamState MomoState NormalizeState ReduceLROnPlateauState SAMState
    ScaleByAdemamixState ScaleBySimplifiedAdEMAMixState SophiaState
    SplitRealAndImaginaryState hutchinson_estimator_diag_hessian
    """
)


def no_attribute(name: str) -> str:
    """The text of the error for a name that `adaptax` has not."""
    where = "optax.contrib" if name in CONTRIB_TRANSFORMATIONS | CONTRIB_OTHERS else "optax"
    if name in TRANSFORMATIONS | CONTRIB_TRANSFORMATIONS:
        use = f"{where}.{name}(...) goes into adaptax.chain and all of adaptax's wrappers"
    elif name in SCHEDULES:
        use = f"{where}.{name}(...) goes wherever adaptax takes a schedule"
    elif name == "contrib":
        use = "what adaptax has of optax.contrib is at its top level, as adaptax.muon is"
    elif name in OTHERS | CONTRIB_OTHERS:
        use = f"{where}.{name} works beside adaptax"
    else:
        return f"module 'adaptax' has no attribute {name!r}"
    return f"adaptax has no {name}; optax has: {use}."
