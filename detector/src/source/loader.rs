//! Loads objects of eBPF programs.

use std::sync::{LazyLock, Mutex, PoisonError};

use aya::{Ebpf, EbpfError, EbpfLoader};

/// The one loader of the process. Making one reads the kernel's own types, whatever it is told afterwards:
/// that takes as long as loading our programs does, and 30 MiB. No program here needs them.
static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    Mutex::new(loader)
});

/// Loads an object.
pub(super) fn load(object: &[u8]) -> Result<Ebpf, EbpfError> {
    load_with(object, |_, _| ())
}

/// Loads an object by a loader that is told more. What it is told it keeps, so it is told twice: before, with
/// `true`, what this object must have, and after that other objects need not have it, whose names must be
/// others.
pub(super) fn load_with(
    object: &[u8],
    tell: impl Fn(&mut EbpfLoader<'static>, bool),
) -> Result<Ebpf, EbpfError> {
    // A loader has nothing that could be left half done.
    let mut loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
    tell(&mut loader, true);
    let programs = loader.load(object);
    tell(&mut loader, false);
    programs
}
