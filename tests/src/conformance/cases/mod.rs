//! The cases. Each is a function of a plugin; [`ALL`] are for every backend, [`CPU`] for those that run guest code.

mod extensions;
mod fake;
mod interrupts;
mod io;
mod kick;
mod memory;
pub mod moves;
mod state;
mod table;
mod time;

use super::plugin::Plugin;

/// A case: its name and what it does.
pub type Case = (&'static str, fn(Plugin));

macro_rules! cases {
    ($($module:ident: $($name:ident)*;)*) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*),*]
    };
}

/// For every backend.
pub const ALL: &[Case] = cases! {
    table: descriptor_is_sane probe_is_sane bad_configurations_are_refused bad_hosts_are_refused
        bad_slots_are_refused short_structs_are_refused bad_vcpus_are_refused errors_fit_a_short_buffer machines_come_and_go;
    state: reset_is_architectural load_and_save_are_identical sections_are_checked clock_is_kept;
    kick: kick_before_run_is_kept kicks_do_not_add_up;
};

/// For the fake backend.
pub const FAKE: &[Case] = cases! {
    fake: panics_stay_inside errors_come_out scripts_run;
};

/// For every backend that runs guest code.
pub const CPU: &[Case] = cases! {
    io: ports_of_all_widths string_ports memory_of_all_widths interrupted_access_is_complete;
    kick: kick_ends_a_busy_loop kick_ends_a_ring_3_loop kick_ends_a_halt kick_ends_a_wait_for_init
        many_kicks_lose_nothing;
    interrupts: message_wakes_a_halt extint_is_acknowledged extint_wakes_a_halt extint_waits_for_the_flag
        level_eoi_is_reported masked_level_eoi_is_reported edge_eoi_is_not_reported nmi_is_taken
        triple_fault_shuts_down other_cpu_starts;
    extensions: doorbells_ring irqfds_interrupt counters_count;
    memory: dirty_log_is_exact dirty_log_misses_no_late_write dirty_log_starts_clear no_load_passes_a_fence written_code_is_seen
        read_only_writes_go_to_the_board slots_can_be_moved;
    time: clock_runs_only_when_started advance_is_seen tsc_is_the_clocks_own one_shot_timer_fires
        periodic_timer_fires tsc_deadline_fires timer_survives_a_stop
        timer_that_ran_out_stopped_fires_once spent_timer_stays_silent;
    state: live_state_is_identical pending_events_are_delivered null_stack_has_one_form interrupted_ring_3_goes_on;
};
