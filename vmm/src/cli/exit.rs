//! Exit codes: Firecracker's numbers where it has one.

/// The guest has reset itself or switched itself off, or the end was asked for.
pub const OK: u8 = 0;
/// Something went wrong while the machine ran or was built.
pub const ERROR: u8 = 1;
/// The guest that was waited for did not arrive; nothing has run here.
pub const NOT_ARRIVED: u8 = 3;
/// The guest's processor has shut down: triple fault.
pub const TRIPLE_FAULT: u8 = 100;
/// The configuration cannot be honoured.
pub const CONFIG: u8 = 152;
/// The command line is wrong.
pub const ARGUMENTS: u8 = 153;

/// For `--help`.
pub(super) const HELP: &str = "Exit codes: 0 the guest reset itself or switched itself off, or SIGINT, SIGTERM or Ctrl-A x; \
1 error; 100 triple fault; 148 forbidden system call; 152 bad configuration; 153 bad arguments.";
