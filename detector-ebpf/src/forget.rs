//! What the verifier need not know.
//!
//! It follows each way through a program with all that it knows of each number, and only where a way
//! meets an earlier one with nothing new does it stop. A number that is bounded otherwise in each turn of
//! a loop makes what comes after the loop new in each turn. So where bounds serve nothing they are
//! forgotten: loading is quicker, by a multiple.

use core::arch::asm;

/// The same number, of which the verifier no longer knows anything. It must not know `any` either: a
/// number that was read of the packet or of its context.
#[inline(always)]
pub(crate) fn forget(number: u64, any: u32) -> u64 {
    let mut number = number;
    // SAFETY: the instructions change the register and change it back.
    unsafe {
        asm!(
            "{number} ^= {any}",
            "{number} ^= {any}",
            number = inout(reg) number,
            any = in(reg) u64::from(any),
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    number
}
