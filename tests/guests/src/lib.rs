//! Guest programs, assembled for x86-64 on any host.
