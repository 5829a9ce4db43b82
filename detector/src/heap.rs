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

/// Lets go of the program's code: half of what is mapped of it only the start needed, such as the parser
/// of the command line and the loader of eBPF objects. What runs again is mapped again, page by page, at
/// the price of a fault that reads no disk as long as the kernel keeps the file in its cache.
pub fn forget_code() {
    // Where /proc is not to be read, the code stays where it is.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some((start, length)) = mapping_of(&maps, forget_code as *const () as usize) else { return };
    // SAFETY: the mapping is this program's own code: private, backed by the file that is running, which
    // nobody can write to, and without write permission, so that no page of it differs from the file.
    // madvise(2) with MADV_DONTNEED drops such pages; the next access reads them from the file again, by
    // whichever thread and at whatever time, this one's return included.
    unsafe {
        libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
    }
}

/// The mapping of code that has this address: where it starts and how long it is. Only one that cannot be
/// written to and is private counts.
fn mapping_of(maps: &str, address: usize) -> Option<(usize, usize)> {
    maps.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let (from, to) =
            (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
        let is_code = words.next()? == "r-xp" && (from..to).contains(&address);
        is_code.then(|| (from, to - from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_and_nothing_else() {
        let maps = "55e0-55f0 r--p 00000000 fe:00 1 /detector\n55f0-5600 r-xp 00001000 fe:00 1 \
                    /detector\n5600-5610 rw-p 00002000 fe:00 1 /detector\nnonsense\n";
        assert_eq!(mapping_of(maps, 0x55f8), Some((0x55f0, 0x10)));
        assert_eq!(mapping_of(maps, 0x5600), None);
        assert_eq!(mapping_of(maps, 0x55ef), None);
        assert_eq!(mapping_of("", 0), None);
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
        assert_eq!(mapping_of("", 0), None);
    }
}
