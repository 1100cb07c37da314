//! The tests, by topic.

mod attacks;
mod budget;
mod camera_to_codec;
mod capture;
mod cases;
mod cheats;
mod compliance;
mod confine;
mod controls;
#[cfg(target_arch = "x86_64")]
mod conversion;
mod doctor;
mod edid;
mod errnos;
mod fallback;
mod faults;
mod fb_attacks;
mod fb_console;
mod fb_ioctls;
mod fb_programs;
mod fb_scene;
mod fb_screen;
mod fb_survival;
mod hotplug;
mod imports;
mod injected;
pub mod kernel_log;
mod kill_loop;
mod lifecycle;
mod loopback;
mod m2m;
mod memory;
mod nodes;
mod observe;
mod over_time;
mod pinning;
mod programs;
mod programs32;
mod random;
mod read;
mod readiness;
mod resolve_matrix;
mod run;
mod sharing;
mod shim32;
mod shim_adoption;
pub mod shim_attacks;
mod shim_beside;
mod shim_exchange;
mod shim_mmap;
mod shim_programs;
mod shim_versions;
mod signals;
mod survival;
mod takeover;
mod verdicts;
mod watchdog;
mod write;

use crate::setup::{Set, Test, is_6_1, is_long};

/// The tests for these devices, in the order in which they run.
pub fn all(set: Set) -> Vec<(&'static str, Test)> {
    let topics: &[&[(&'static str, Test)]] = match set {
        Set::Cameras => &[
            capture::TESTS,
            errnos::TESTS,
            controls::TESTS,
            edid::TESTS,
            signals::TESTS,
            random::TESTS,
            read::TESTS,
            memory::TESTS,
            imports::TESTS,
            sharing::TESTS,
            budget::TESTS,
            injected::TESTS,
            programs::TESTS,
            programs32::TESTS,
            shim32::TESTS,
            fallback::TESTS,
            readiness::TESTS,
            kill_loop::TESTS,
            lifecycle::TESTS,
            confine::TESTS,
            watchdog::TESTS,
            observe::TESTS,
            doctor::TESTS,
            shim_attacks::TESTS,
            kernel_log::TESTS,
        ],
        Set::Kinds => &[
            nodes::TESTS,
            write::TESTS,
            sharing::KINDS_TESTS,
            programs32::PLANES,
            #[cfg(target_arch = "x86_64")]
            conversion::TESTS,
            compliance::KINDS,
            kernel_log::TESTS,
        ],
        Set::M2m => &[
            nodes::M2M_TESTS,
            m2m::TESTS,
            programs32::M2M,
            shim32::M2M,
            programs::OUTPUT_TESTS,
            loopback::TESTS,
            compliance::M2M,
            // It leaves its own formats to the camera, by whose buffers the tests before are judged.
            camera_to_codec::TESTS,
            faults::TESTS,
            kernel_log::TESTS,
        ],
        Set::Memory => &[
            resolve_matrix::TESTS,
            cheats::TESTS,
            over_time::TESTS,
            pinning::TESTS,
            attacks::TESTS,
            fb_ioctls::VESA,
            fb_survival::TESTS,
            kernel_log::TESTS,
        ],
        Set::Shim => &[
            shim_programs::TESTS,
            shim_mmap::TESTS,
            shim_beside::TESTS,
            compliance::SHIM,
            shim_adoption::TESTS,
            shim_exchange::TESTS,
            shim_versions::TESTS,
            run::TESTS,
            survival::TESTS,
            kernel_log::TESTS,
        ],
        Set::Screens => &[
            fb_console::TESTS,
            fb_ioctls::TESTS,
            fb_programs::TESTS,
            fb_programs::settings::TESTS,
            fb_screen::TESTS,
            fb_scene::TESTS,
            fb_attacks::TESTS,
            kernel_log::TESTS,
        ],
        Set::Service => &[hotplug::TESTS, takeover::TESTS, kernel_log::TESTS],
        Set::Bochs => &[resolve_matrix::BOCHS, kernel_log::TESTS],
    };
    let mut tests = topics.concat();
    tests.retain(|(name, _)| is_for_this_kernel(name));
    tests
}

/// What takes long to load or to wait for, and is the same on every kernel: one is enough, but for long runs.
const ON_ONE_KERNEL: &[&str] = &[
    "attacks::memory_cut_into_thousands_of_mappings_costs_the_daemon_little",
    "fallback::ffmpeg_gives_up",
    "fallback::gstreamer_gives_up_auto_and_mmap",
    "fallback::gstreamer_gives_up_dmabuf_and_reads_when_told_to",
    "fallback::mplayer_gives_up",
    "fallback::ustreamer_gives_up_mmap",
    "fb_attacks::as_many_files_as_one_user_may_open",
    "fb_attacks::hundreds_of_mappings",
    "fb_attacks::random_ioctls_of_four_threads",
    "fb_console::another_terminal_shows_its_text",
    "fb_console::comes_back_when_we_are_killed",
    "fb_ioctls::vesafb_says_the_same_to_64_and_32_bits",
    "fb_ioctls::virtio_gpu_reads_writes_seeks_and_maps_the_same",
    "fb_ioctls::virtio_gpu_says_the_same_to_64_and_32_bits",
    "fb_programs::directfb",
    "fb_programs::directfb_lists",
    "fb_programs::fbcat_and_ffmpeg_grab",
    "fb_programs::fbi",
    "fb_programs::fbset_sets_on_vfb",
    "fb_programs::ffmpeg_draws",
    "fb_programs::fim",
    "fb_programs::gstreamer",
    "fb_programs::mplayer",
    "fb_programs::qt_5",
    "fb_programs::sdl_1_2",
    "fb_programs::stress_ng",
    "fb_screen::a_screen_that_nobody_sees_has_every_format",
    "fb_screen::bochs_shows_every_format",
    "fb_screen::virtio_gpu_shows_a_shadow_in_every_format",
    "kill_loop::after_close_the_real_node_is_free_at_once",
    "nodes::read_ends_where_the_frame_of_each_kind_ends",
    "programs32::captures_are_the_picture",
    "programs32::captures_of_two_planes_are_the_same",
    "programs32::controls_of_every_type_are_the_same",
    "random::queue_calls_have_the_same_outcome_where_the_device_refuses_userptr",
    "sharing::eight_clients_on_eight_nodes",
    "sharing::eight_clients_on_one_node_take_turns",
    "shim32::exported_buffers_are_the_picture",
    "shim32::mapped_captures_are_the_picture",
    "shim32::mappings_give_what_the_kernel_gives",
    "shim32::programs_of_both_sizes_have_one_library_path",
    "shim_exchange::limits_are_refusals",
    "shim_programs::ffmpeg",
    "shim_programs::gstreamer_captures_by_each_io_mode",
    "shim_programs::gstreamer_gives_a_cameras_buffers_to_an_output",
    "shim_programs::gstreamer_puts_out_by_each_io_mode",
    "shim_programs::mplayer",
    "shim_programs::opencv",
    "shim_programs::vlc_as_an_ordinary_user",
    "shim_programs::with_other_libraries_preloaded",
    "watchdog::a_deadlock_of_ours_frees_its_clients_and_ends_us",
    "watchdog::a_device_that_hangs_when_it_is_looked_at_hangs_alone",
    "watchdog::is_told_while_all_goes_on_and_not_while_we_are_stopped",
    "watchdog::what_hangs_in_a_driver_is_told_and_left_alone",
    "watchdog::where_nobody_starts_us_again_the_other_nodes_go_on",
];

/// Only long runs have these: more of what other tests show. v4l2-compliance with `-s` makes all the tests that it makes
/// without.
const ONLY_LONG: &[&str] = &[
    "compliance::video_capture",
    "compliance::video_output",
    "fb_console::comes_back_when_we_are_killed_again",
    "fb_console::comes_back_when_we_are_killed_on_bochs",
    "fb_ioctls::bochs_reads_writes_seeks_and_maps_the_same",
    "fb_ioctls::bochs_says_the_same_to_64_and_32_bits",
    "fb_programs::fbset_sets_on_a_card",
    "fb_programs::links2",
    "fb_programs::vlc_as_an_ordinary_user",
    "kill_loop::clients_killed_at_any_moment_leave_nothing_on_dma_contig",
    "nodes::epoll_gives_the_same_bits_for_each_kind",
    "nodes::select_gives_the_same_sets_for_each_kind",
    "shim_exchange::nothing_is_left_behind_by_ten_thousand",
];

/// Does this test run here? What 32-bit programs pass is converted by us, and one kernel shows that, too.
fn is_for_this_kernel(name: &str) -> bool {
    let is_32_bit = name.starts_with("compliance::") && name.ends_with("_i386");
    is_long() || !(ONLY_LONG.contains(&name) || is_6_1() && (is_32_bit || ON_ONE_KERNEL.contains(&name)))
}
