//! What the allocator keeps.

/// Gives back to the kernel what is free in the allocator's hands: what loading programs and listing a
/// cluster leave behind is more than all that the agent holds.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, and may be called at any time by any thread; it touches
    // nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
