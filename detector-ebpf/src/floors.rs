//! Programs that tests and `cargo xtask bench packet` hold those of `packets` against: such as do a part
//! of what they do, so as to tell what that costs at the least, and one that stands for somebody else's.
//! The agent carries them nowhere.
//!
//! Built for the BPF target by detector/build.rs.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC};
    use aya_ebpf::macros::{classifier, map};
    use aya_ebpf::maps::{Array, HashMap};
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

    /// How many packets the stranger has seen.
    #[map]
    static STRANGER: Array<u64> = Array::with_max_entries(1, 0);

    /// Stands for a dataplane of its own: decides about every packet, and drops what is for port 9.
    #[classifier]
    pub(crate) fn stranger(context: TcContext) -> i32 {
        if let Some(seen) = STRANGER.get_ptr_mut(0) {
            // SAFETY: the pointer is to a value of the map; the test sends from one CPU.
            unsafe { *seen += 1 };
        }
        // Behind the headers of Ethernet and IPv4, and the source port.
        let port = context.load::<u16>(14 + 20 + 2).map_or(0, u16::from_be);
        if port == 9 { TC_ACT_SHOT } else { TC_ACT_OK }
    }
}

detector_ebpf::object!();
