//! Whether a sense sees, where several parts make it up.

use detector_core::observation::{Sense, What};

use super::watch::Word;

/// What is known of the parts of one sense. It sees when every part has been read and none is
/// blind.
pub(super) struct Sight<const PARTS: usize> {
    sense: Sense,
    read: [bool; PARTS],
    blind: [Option<Box<str>>; PARTS],
    told: Told,
}

#[derive(PartialEq, Eq)]
enum Told {
    Nothing,
    Seeing,
    Blind(Box<str>),
}

// === impl Sight ===

impl<const PARTS: usize> Sight<PARTS> {
    pub(super) fn new(sense: Sense) -> Self {
        let (read, blind) = ([false; PARTS], [const { None }; PARTS]);
        Self { sense, read, blind, told: Told::Nothing }
    }

    /// Takes what a word says of one part, whatever else it says.
    pub(super) fn hear<T>(&mut self, part: usize, word: &Word<T>) {
        match word {
            Word::Reset(_) => self.read[part] = true,
            Word::NotServed => self.sees(part),
            Word::Blind(reason) => self.blind(part, reason.clone()),
            Word::Seeing => self.blind[part] = None,
            Word::Applied(_) | Word::Deleted(_) => {}
        }
    }

    /// One part does not see.
    pub(super) fn blind(&mut self, part: usize, reason: Box<str>) {
        self.blind[part] = Some(reason);
    }

    /// One part sees all there is.
    pub(super) fn sees(&mut self, part: usize) {
        self.read[part] = true;
        self.blind[part] = None;
    }

    /// Whether nothing more is to be waited for of one part: it was read, or it cannot be.
    pub(super) fn is_settled(&self, part: usize) -> bool {
        self.read[part] || self.blind[part].is_some()
    }

    /// Whether nothing more is to be waited for of any part.
    pub(super) fn is_all_settled(&self) -> bool {
        (0..PARTS).all(|part| self.is_settled(part))
    }

    /// What is to be told of the sense, if that is news.
    pub(super) fn news(&mut self) -> Option<What> {
        let reason = self.blind.iter().flatten().next().cloned();
        let now = match &reason {
            Some(reason) => Told::Blind(reason.clone()),
            None if self.read.iter().all(|read| *read) => Told::Seeing,
            None => return None,
        };
        if now == self.told {
            return None;
        }
        self.told = now;
        Some(What::Blind(self.sense, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sees_when_all_parts_do() {
        let mut sight = Sight::<2>::new(Sense::Pools);
        let blind = |reason: &str| Some(What::Blind(Sense::Pools, Some(reason.into())));
        assert_eq!(sight.news(), None);
        sight.hear(0, &Word::<()>::Blind("a".into()));
        assert_eq!(sight.news(), blind("a"));
        assert_eq!(sight.news(), None);
        assert!(sight.is_settled(0) && !sight.is_settled(1) && !sight.is_all_settled());
        sight.blind(1, "b".into());
        // What was told stays until it is over.
        assert_eq!(sight.news(), None);
        assert!(sight.is_all_settled());
        sight.hear(0, &Word::<()>::Reset(vec![]));
        sight.hear(0, &Word::<()>::Seeing);
        assert_eq!(sight.news(), blind("b"));
        sight.sees(1);
        assert_eq!(sight.news(), Some(What::Blind(Sense::Pools, None)));
        assert_eq!(sight.news(), None);
        sight.hear(1, &Word::<()>::NotServed);
        assert_eq!(sight.news(), None);
    }

    #[test]
    fn what_was_not_read_is_not_called_seen() {
        let mut sight = Sight::<2>::new(Sense::Feature);
        sight.hear(0, &Word::<()>::Reset(vec![]));
        sight.hear(1, &Word::<()>::Blind("a".into()));
        assert!(sight.news().is_some());
        sight.hear(1, &Word::<()>::Seeing);
        assert_eq!(sight.news(), None);
        sight.hear(1, &Word::<()>::Reset(vec![]));
        assert_eq!(sight.news(), Some(What::Blind(Sense::Feature, None)));
    }
}
