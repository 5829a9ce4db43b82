//! What the verifier need not know.
//!
//! It follows each way through a program with all that it knows of each number, and only where a way
//! meets an earlier one with nothing new does it stop. A number that is bounded otherwise in each turn of
//! a loop makes what comes after the loop new in each turn. So where bounds serve nothing they are
//! forgotten: loading is quicker, by a multiple.

use core::arch::asm;

/// The same number, of which the verifier no longer knows anything but that it has 32 bits. It must know
/// no more of `any`: a number that was read of the packet or of its context.
#[inline(always)]
pub(crate) fn forget(number: u32, any: u32) -> u32 {
    let mut number = u64::from(number);
    // SAFETY: the instructions change the register and change it back.
    unsafe {
        asm!(
            "{number} ^= {any}",
            "{number} ^= {any}",
            number = inout(reg) number,
            any = in(reg) u64::from(any),
            options(nomem, nostack, preserves_flags),
        );
    }
    number as u32
}
