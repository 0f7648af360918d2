"""Which tests take most of the time: they export, run the command line or start processes.

`make quick` leaves them out, for work in progress; `make test` runs all. A name of a file stands
for all tests in it.
"""

from __future__ import annotations

SLOW = {
    "test_ablation.py",
    "test_again.py",
    "test_bench.py",
    "test_cli.py::test_finished_run_is_told_and_not_repeated",
    "test_cli.py::test_folder_of_another_run_is_refused",
    "test_cli.py::test_interrupt_ends_with_3_and_the_run_continues",
    "test_cli.py::test_layer_rules_and_widths_reach_the_graph",
    "test_cli.py::test_model_that_cannot_be_traced_names_file_and_line",
    "test_cli.py::test_recipe_file_repeats_the_run_byte_for_byte",
    "test_constructs.py::test_inputs_and_outputs_are_named_as_the_model_names_them",
    "test_constructs.py::test_the_file_computes_the_same_in_integer_kernels",
    "test_constructs.py::test_what_is_told_of_integer_kernels_is_what_the_file_runs_in",
    "test_demo.py",
    "test_detections.py",
    "test_detectors.py",
    "test_determinism.py",
    "test_export.py",
    "test_external.py",
    "test_faults.py",
    "test_fuzz.py",
    "test_hard_sigmoids.py",
    "test_hostile_files.py",
    "test_inspect.py::test_a_pipe_that_closes_early_is_no_error",
    "test_inspect.py::test_report_and_inspect_agree",
    "test_isolated.py",
    "test_kernels.py",
    "test_kills.py",
    "test_layer_packages.py",
    "test_library.py",
    "test_memory.py",
    "test_mixed_cli.py",
    "test_numerical_faults.py",
    "test_openvino.py",
    "test_parity.py",
    "test_patches.py::test_a_transformer_of_timm",
    "test_patches.py::test_the_command_line_says_what_it_does",
    "test_preset_parts.py::test_the_benchmark_compares_and_does_no_run_again",
    "test_processors.py",
    "test_pt2.py",
    "test_random_graphs.py",
    "test_real_networks.py",
    "test_record_fuzz.py",
    "test_sandbox.py",
    "test_saturation.py",
    "test_step_time.py::test_both_are_timed_in_turns",
    "test_streams.py::test_a_reader_that_leaves_ends_nothing",
    "test_streams.py::test_a_run_without_streams_leaves_the_same_files",
    "test_streams.py::test_an_encoding_that_lacks_letters_ends_nothing",
    "test_streams.py::test_results_that_find_no_room_are_told",
    "test_tensorrt.py",
    "test_together.py",
    "test_verify_outputs.py",
    "test_watchers.py::test_tensorboard_gets_losses_rates_and_images_and_changes_no_result",
    "test_widths.py",
    "test_zoo_pickles.py",
    "test_zoo_sample.py",
}


def is_slow(file: str, function: str) -> bool:
    """Whether the function of this name in the file of this name is one of them."""
    return file in SLOW or f"{file}::{function}" in SLOW
