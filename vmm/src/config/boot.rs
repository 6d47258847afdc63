//! `PUT /boot-source`.

use super::Invalid;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSourceConfig {
    /// ELF image (PVH or the 64-bit Linux protocol) or bzImage.
    pub kernel_image_path: PathBuf,
    /// Initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// Command line; absent: [`BootSourceConfig::DEFAULT_ARGS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

impl BootSourceConfig {
    /// Command line of a guest that is given none, as Firecracker's.
    pub const DEFAULT_ARGS: &str =
        "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";
    /// Longest command line in bytes (the boot protocol's field and what Linux keeps).
    pub const MAX_ARGS: usize = 2047;

    /// The command line to use.
    pub fn args(&self) -> &str {
        self.boot_args.as_deref().unwrap_or(Self::DEFAULT_ARGS)
    }

    /// Checks what can be checked without opening the files.
    ///
    /// # Errors
    /// A command line that is too long or not printable ASCII.
    pub fn validate(&self) -> Result<(), Invalid> {
        let args = self.args();
        if args.len() > Self::MAX_ARGS {
            let why = format!("{} bytes; a guest takes at most {}", args.len(), Self::MAX_ARGS);
            return Err(Invalid::new("boot_args", why));
        }
        if let Some(c) = args.chars().find(|c| !(' '..='~').contains(c)) {
            return Err(Invalid::new("boot_args", format!("{c:?} is not printable ASCII")));
        }
        Ok(())
    }

    /// Checks that the files are there and can be read.
    ///
    /// # Errors
    /// Firecracker's sentence, and which file.
    pub fn check_files(&self) -> Result<(), Invalid> {
        let kernel = Some(("kernel_image_path", "The kernel file", &self.kernel_image_path));
        let initrd = self.initrd_path.as_ref().map(|path| ("initrd_path", "The initrd file", path));
        for (field, what, path) in kernel.into_iter().chain(initrd) {
            // A named pipe would be waited for.
            let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
            opened.map_err(|e| {
                Invalid::new(field, format!("{what} cannot be opened: {e} ({})", path.display()))
            })?;
        }
        Ok(())
    }
}
