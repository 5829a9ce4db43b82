//! Which verdicts rest on which questions, so that an answer is looked at by exactly those.

use std::collections::{BTreeSet, HashMap};

use crate::finding::Subject;
use crate::observation::Question;

/// Subjects by the questions that they rest on. Only subjects that the ledger knows are kept, so
/// this is as bounded as the ledger is.
#[derive(Debug, Default)]
pub(super) struct Resting {
    by_subject: HashMap<Subject, BTreeSet<Question>>,
    by_question: HashMap<Question, BTreeSet<Subject>>,
}

impl Resting {
    /// The subjects that rest on the answer to a question.
    pub(super) fn on(&self, question: Question) -> impl Iterator<Item = &Subject> {
        self.by_question.get(&question).into_iter().flatten()
    }

    /// Notes what a subject rests on now.
    pub(super) fn set(&mut self, subject: &Subject, questions: BTreeSet<Question>) {
        let old = match self.by_subject.get(subject) {
            Some(old) if *old == questions => return,
            Some(old) => old.clone(),
            None => BTreeSet::new(),
        };
        for question in old.difference(&questions) {
            if let Some(subjects) = self.by_question.get_mut(question) {
                subjects.remove(subject);
                if subjects.is_empty() {
                    self.by_question.remove(question);
                }
            }
        }
        for question in questions.difference(&old) {
            self.by_question.entry(*question).or_default().insert(subject.clone());
        }
        if questions.is_empty() {
            self.by_subject.remove(subject);
        } else {
            self.by_subject.insert(subject.clone(), questions);
        }
    }
}
