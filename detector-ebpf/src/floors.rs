//! What a packet program costs at the least: programs that do a part of what `packets` does, and
//! nothing else. For `cargo xtask bench packet` only; the agent carries them nowhere.
//!
//! Built for the BPF target by detector/build.rs.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::TC_ACT_UNSPEC;
    use aya_ebpf::macros::{classifier, map};
    use aya_ebpf::maps::HashMap;
    use aya_ebpf::programs::TcContext;
    use detector_ebpf::traffic::{Words, mapped_words};

    /// Stands for the watched addresses.
    #[map]
    static FLOOR: HashMap<Words, u32> = HashMap::with_max_entries(4_096, 0);

    /// Nothing at all.
    #[classifier]
    pub(crate) fn empty(_: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    /// Where an IPv4 packet goes; 0 for any other.
    #[inline(always)]
    fn destination(context: &TcContext) -> u32 {
        let (start, end) = (context.data(), context.data_end());
        if start + 34 > end {
            return 0;
        }
        // SAFETY: the bytes lie within the packet, as was just compared.
        let kind = unsafe { ((start + 12) as *const u16).read_unaligned() };
        if u16::from_be(kind) != 0x0800 {
            return 0;
        }
        // SAFETY: as above.
        unsafe { ((start + 30) as *const u32).read_unaligned() }
    }

    /// A look at where a packet goes.
    #[classifier]
    pub(crate) fn parse(context: TcContext) -> i32 {
        if destination(&context) == u32::MAX { 0 } else { TC_ACT_UNSPEC }
    }

    /// The same, and one look into a hash map.
    #[classifier]
    pub(crate) fn parse_and_look(context: TcContext) -> i32 {
        let key = mapped_words(destination(&context));
        // SAFETY: only presence counts.
        if unsafe { FLOOR.get(key) }.is_some() { 0 } else { TC_ACT_UNSPEC }
    }
}

detector_ebpf::object!();
