//! What the start leaves in memory: what the allocator keeps, and code that does not run again.

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

/// Lets go of the program's code and constants: more than half of what is mapped of them only the start
/// needed, such as the parser of the command line and the eBPF objects. What is used again is mapped
/// again, at the price of a fault that reads no disk as long as the kernel keeps the file in its cache;
/// a breakpoint that somebody has put there goes with it.
pub fn forget_code() {
    // Where /proc is not to be read, all stays where it is.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in mappings(&maps, forget_code as *const () as usize) {
        // SAFETY: private mappings of the running file, which nobody can write to, and never writable
        // themselves (see `mappings`), so they are as the file is. MADV_DONTNEED drops their pages; the
        // next access, at whatever time and by whichever thread, reads them from the file again.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// The mappings of the program that has code at this address, where each starts and how long it is, that
/// were never writable: its code, and its constants, with which the file begins. The loader writes to what
/// comes after the code, and may protect it later, so that it looks like constants.
fn mappings(maps: &str, address: usize) -> Vec<(usize, usize)> {
    struct Mapping<'a> {
        from: usize,
        to: usize,
        mode: &'a str,
        offset: usize,
        file: (&'a str, &'a str),
    }
    let parse = |line| -> Option<Mapping<'_>> {
        let mut words = str::split_whitespace(line);
        let (from, to) = words.next()?.split_once('-')?;
        let hex = |text| usize::from_str_radix(text, 16).ok();
        let (from, to, mode) = (hex(from)?, hex(to)?, words.next()?);
        let offset = hex(words.next()?)?;
        Some(Mapping { from, to, mode, offset, file: (words.next()?, words.next()?) })
    };
    let all: Vec<Mapping<'_>> = maps.lines().filter_map(parse).collect();
    let is_code = |mapping: &&Mapping<'_>| {
        mapping.mode == "r-xp" && (mapping.from..mapping.to).contains(&address)
    };
    let Some(code) = all.iter().find(is_code) else { return Vec::new() };
    all.iter()
        .filter(|mapping| mapping.file == code.file)
        .filter(|mapping| mapping.mode == "r-xp" || (mapping.mode == "r--p" && mapping.offset == 0))
        .map(|mapping| (mapping.from, mapping.to - mapping.from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_written_is_found_and_nothing_else() {
        let maps = "55e0-55f0 r--p 00000000 fe:00 7 /detector\n\
                    55f0-5600 r-xp 00001000 fe:00 7 /detector\n\
                    5600-5610 r--p 00002000 fe:00 7 /detector\n\
                    5610-5620 rw-p 00003000 fe:00 7 /detector\n\
                    7000-7010 r--p 00000000 fe:00 8 /lib/libc.so.6\n\
                    7010-7020 r-xp 00001000 fe:00 8 /lib/libc.so.6\nnonsense\n";
        assert_eq!(mappings(maps, 0x55f8), [(0x55e0, 0x10), (0x55f0, 0x10)]);
        for elsewhere in [0x55ef, 0x5600, 0x5610, 0x7000] {
            assert_eq!(mappings(maps, elsewhere), []);
        }
        assert_eq!(mappings("", 0), []);
    }

    #[test]
    fn what_is_forgotten_still_runs() {
        let held = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split_whitespace().nth(2).unwrap().parse::<usize>().unwrap()
        };
        let before = held();
        forget_code();
        let after = held();
        assert!(after < before, "{after} pages of files, {before} before");
    }
}
