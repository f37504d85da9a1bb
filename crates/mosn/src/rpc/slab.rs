//! Calls in flight on one upstream connection, found by the id under which they were sent: an index
//! and a generation, so that neither sending nor answering a call hashes or searches.

/// Bits of an id that are the index; the rest is the generation. A million calls may be in flight.
const INDEX_BITS: u32 = 20;

/// A slot map whose keys are request ids of `id_bits` bits.
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Option<u32>,
    used: usize,
    generation_mask: u64,
}

struct Slot<T> {
    generation: u64,
    state: State<T>,
}

enum State<T> {
    Used(T),
    /// Given up: the id is not used again until its late answer came or this time has passed.
    Abandoned(u64),
    Free(Option<u32>),
}

impl<T> Slab<T> {
    pub(super) fn new(id_bits: u32) -> Slab<T> {
        Slab {
            slots: Vec::new(),
            free: None,
            used: 0,
            generation_mask: (1 << (id_bits - INDEX_BITS).min(43)) - 1,
        }
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// Stores a value and returns its id; `Err` gives it back when every index is taken.
    pub(super) fn insert(&mut self, value: T) -> Result<u64, T> {
        let index = match self.free {
            Some(index) => index,
            None if self.slots.len() < 1 << INDEX_BITS => {
                self.slots.push(Slot {
                    generation: 0,
                    state: State::Free(None),
                });
                (self.slots.len() - 1) as u32
            }
            None => return Err(value),
        };
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return Err(value);
        };
        if let State::Free(next) = slot.state {
            self.free = next;
        }
        slot.generation = (slot.generation + 1) & self.generation_mask;
        slot.state = State::Used(value);
        self.used += 1;
        Ok((slot.generation << INDEX_BITS) | u64::from(index))
    }

    fn slot(&mut self, id: u64) -> Option<(&mut Slot<T>, u32)> {
        let index = id & ((1 << INDEX_BITS) - 1);
        let slot = self.slots.get_mut(index as usize)?;
        (slot.generation == id >> INDEX_BITS).then_some((slot, index as u32))
    }

    /// The value of an id.
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        match &mut self.slot(id)?.0.state {
            State::Used(value) => Some(value),
            _ => None,
        }
    }

    /// Takes the value of an id out; a late answer frees its slot and gives nothing.
    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        let next = self.free;
        let (slot, index) = self.slot(id)?;
        if matches!(slot.state, State::Free(_)) {
            return None;
        }
        let old = std::mem::replace(&mut slot.state, State::Free(next));
        self.free = Some(index);
        match old {
            State::Used(value) => {
                self.used -= 1;
                Some(value)
            }
            _ => None,
        }
    }

    /// Takes out every value that `expired` says; their ids stay reserved until `reserve_until`, and
    /// reservations older than `now` end.
    pub(super) fn expire(
        &mut self,
        now: u64,
        reserve_until: u64,
        mut expired: impl FnMut(&T) -> bool,
        mut take: impl FnMut(T),
    ) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            match &slot.state {
                State::Used(value) if expired(value) => {
                    let old = std::mem::replace(&mut slot.state, State::Abandoned(reserve_until));
                    self.used -= 1;
                    if let State::Used(value) = old {
                        take(value);
                    }
                }
                State::Abandoned(until) if *until <= now => {
                    slot.state = State::Free(self.free);
                    self.free = Some(index as u32);
                }
                _ => {}
            }
        }
    }

    /// Every value.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots
            .iter_mut()
            .filter_map(|slot| match &mut slot.state {
                State::Used(value) => Some(value),
                _ => None,
            })
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.used = 0;
        self.free = None;
        self.slots
            .drain(..)
            .filter_map(|slot| match slot.state {
                State::Used(value) => Some(value),
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_finds_its_value_once_and_never_that_of_another() {
        let mut slab = Slab::new(32);
        let a = slab.insert("a").expect("room");
        let b = slab.insert("b").expect("room");
        assert_ne!(a, b);
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!(slab.remove(a), None);
        let c = slab.insert("c").expect("room");
        assert_ne!(a, c);
        assert_eq!(
            slab.remove(a),
            None,
            "an old id does not find the new value"
        );
        assert_eq!(
            (slab.remove(c), slab.remove(b), slab.len()),
            (Some("c"), Some("b"), 0)
        );
        assert!(c <= u64::from(u32::MAX));
        assert_eq!(slab.remove(u64::MAX), None);
    }

    #[test]
    fn an_expired_id_is_not_used_again_before_its_late_answer_or_the_end_of_its_reservation() {
        let mut slab = Slab::new(32);
        let id = slab.insert(1).expect("room");
        let mut taken = Vec::new();
        slab.expire(10, 100, |value| *value == 1, |value| taken.push(value));
        assert_eq!((taken, slab.len()), (vec![1], 0));
        let other = slab.insert(2).expect("room");
        assert_ne!(other & 0xf_ffff, id & 0xf_ffff, "another index");
        assert_eq!(slab.remove(id), None, "the late answer");
        let reused = slab.insert(3).expect("room");
        assert_eq!(reused & 0xf_ffff, id & 0xf_ffff);
        slab.expire(10, 100, |value| *value == 3, |_| {});
        slab.expire(100, 200, |_| false, |_| {});
        assert_eq!(slab.insert(4).map(|id| id & 0xf_ffff), Ok(id & 0xf_ffff));
    }

    #[test]
    fn gives_the_value_back_when_full() {
        let mut slab = Slab::new(32);
        for value in 0..1 << INDEX_BITS {
            assert!(slab.insert(value).is_ok());
        }
        assert_eq!(slab.insert(-1), Err(-1));
        assert_eq!(slab.drain().len(), 1 << INDEX_BITS);
    }
}
