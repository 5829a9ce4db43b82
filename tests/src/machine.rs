//! The end of a virtual machine that `cargo xtask vm` boots, with what came of it.

/// The port of qemu's `isa-debug-exit`: a number `n` written to it ends qemu with the code `2n + 1`.
const EXIT_PORT: u16 = 0xf4;
const ALL_WELL: u8 = 1;
const FAILED: u8 = 2;

/// The serial line that is read for results; the first is the console.
pub const LINE: &str = "/dev/ttyS1";

/// Where a whole system lies that the machine is to go on with.
pub const USERLAND: &str = "/userland";

/// Ends the machine.
#[cfg(target_arch = "x86_64")]
pub fn end(all_well: bool) {
    let code = if all_well { ALL_WELL } else { FAILED };
    // SAFETY: the call takes no pointer; it lets this process write to one port.
    if unsafe { nix::libc::ioperm(EXIT_PORT.into(), 1, 1) } != 0 {
        eprintln!("guest: {}", std::io::Error::last_os_error());
        return;
    }
    // SAFETY: writing to the port touches no memory. On a machine without the device it does nothing.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") code, options(nomem, nostack));
    }
}

/// Other machines have no ports: the last line tells.
#[cfg(not(target_arch = "x86_64"))]
pub fn end(_: bool) {}
