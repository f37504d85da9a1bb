//! One copy of each word that many instances have.

use std::sync::Arc;

use foldhash::HashSet;

use crate::model::Instance;

/// Words that are known before it is looked which of them are still in use.
const FEW: usize = 4096;

/// Words that are in use, and some that no longer are.
#[derive(Debug, Default)]
pub(crate) struct Words {
    known: HashSet<Arc<str>>,
    /// How many there may be before those that nobody uses are forgotten.
    room: usize,
}

impl Words {
    /// Replaces the words of an instance that others are likely to have by the copies that are known.
    pub(crate) fn share(&mut self, instance: &mut Instance) {
        for word in [
            &mut instance.service.protocol,
            &mut instance.service.name,
            &mut instance.version,
            &mut instance.group,
            &mut instance.origin,
        ] {
            match self.known.get(word) {
                Some(known) => *word = known.clone(),
                None => {
                    self.known.insert(word.clone());
                }
            }
        }
        if self.known.len() > self.room {
            self.known.retain(|word| Arc::strong_count(word) > 1);
            self.room = FEW.max(self.known.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;

    #[test]
    fn words_are_shared_and_forgotten() {
        let mut words = Words::default();
        let instance = |name: &str| Instance::new(ServiceKey::new("bolt", name), "10.0.0.1", 1);
        let (mut a, mut b) = (instance("s"), instance("s"));
        words.share(&mut a);
        words.share(&mut b);
        assert!(Arc::ptr_eq(&a.service.name, &b.service.name));
        for number in 0..3 * FEW {
            words.share(&mut instance(&number.to_string()));
        }
        assert!(words.known.len() <= FEW + 8, "{}", words.known.len());
    }
}
