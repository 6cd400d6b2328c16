//! The connections of a worker, each under a key that is never used twice.

use std::sync::Arc;

use crate::arena::Key;
use crate::worker::connection::Connection;

/// Connections by their place; a freed place is used again under the next generation.
#[derive(Debug, Default)]
pub(in crate::worker) struct Table {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    connection: Option<Arc<Connection>>,
}

impl Table {
    /// Puts a new connection in; `make` is given the key it will be known by. None where that makes none.
    pub(in crate::worker) fn insert(
        &mut self,
        make: impl FnOnce(Key) -> Option<Connection>,
    ) -> Option<Arc<Connection>> {
        let index = self.free_place();
        let place = &mut self.places[index as usize];
        place.connection = make(Key { index, generation: place.generation }).map(Arc::new);
        if place.connection.is_none() {
            self.free.push(index);
        }
        place.connection.as_ref().map(Arc::clone)
    }

    /// Takes a place for a connection that is being made; nobody finds it there before it [fills](Self::fill) the place.
    pub(in crate::worker) fn reserve(&mut self) -> Key {
        let index = self.free_place();
        let generation = self.places.get(index as usize).map_or(0, |place| place.generation);
        Key { index, generation }
    }

    pub(in crate::worker) fn fill(&mut self, key: Key, connection: Arc<Connection>) {
        if let Some(place) = self.places.get_mut(key.index as usize) {
            place.connection = Some(connection);
        }
    }

    /// Nobody came to fill a reserved place.
    pub(in crate::worker) fn give_back(&mut self, key: Key) {
        if let Some(place) = self.places.get_mut(key.index as usize) {
            place.generation = place.generation.wrapping_add(1);
            self.free.push(key.index);
        }
    }

    fn free_place(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            // Far more connections than a process can have descriptors.
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        })
    }

    pub(in crate::worker) fn get(&self, key: Key) -> Option<Arc<Connection>> {
        let place = self.places.get(key.index as usize)?;
        place.connection.as_ref().filter(|_| place.generation == key.generation).map(Arc::clone)
    }

    /// Takes a connection out; false when it had left before.
    pub(in crate::worker) fn remove(&mut self, key: Key) -> bool {
        let Some(place) = self.places.get_mut(key.index as usize) else {
            return false;
        };
        if place.generation != key.generation || place.connection.take().is_none() {
            return false;
        }
        place.generation = place.generation.wrapping_add(1);
        self.free.push(key.index);
        true
    }

    pub(in crate::worker) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(in crate::worker) fn all(&self) -> Vec<Arc<Connection>> {
        self.places.iter().filter_map(|place| place.connection.as_ref().map(Arc::clone)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::Socket;

    fn insert(table: &mut Table) -> Key {
        let (socket, _) = Socket::pair();
        table.insert(|key| Some(crate::worker::connection::of(socket, key))).unwrap().key
    }

    #[test]
    fn a_place_is_used_again_under_another_key() {
        let mut table = Table::default();
        let (first, second) = (insert(&mut table), insert(&mut table));
        assert!(table.remove(first));
        let third = insert(&mut table);
        assert_eq!(third.index, first.index);
        assert_ne!(third, first);
        assert_eq!(table.places.len(), 2);
        for key in [second, third] {
            assert_eq!(table.get(key).map(|connection| connection.key), Some(key));
        }
    }

    #[test]
    fn the_key_of_a_connection_that_has_left_finds_and_removes_nothing() {
        let mut table = Table::default();
        let stale = insert(&mut table);
        assert!(table.remove(stale));
        assert!(!table.remove(stale), "twice");
        assert!(table.get(stale).is_none());
        let lives = insert(&mut table);
        assert!(!table.remove(stale));
        assert!(table.get(stale).is_none());
        assert!(table.get(lives).is_some());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_place_for_which_there_is_no_connection_stays_free() {
        let mut table = Table::default();
        assert!(table.insert(|_| None).is_none());
        assert_eq!((table.len(), table.all().len()), (0, 0));
        assert_eq!(insert(&mut table), Key { index: 0, generation: 0 });
    }

    #[test]
    fn a_key_that_never_was_finds_nothing() {
        let mut table = Table::default();
        insert(&mut table);
        let never = Key { index: 7, generation: 0 };
        assert!(table.get(never).is_none());
        assert!(!table.remove(never));
    }

    #[test]
    fn nobody_finds_a_connection_before_it_fills_its_place() {
        let mut table = Table::default();
        let key = table.reserve();
        assert!(table.get(key).is_none());
        assert_eq!((table.len(), table.all().len()), (1, 0), "it counts, so that the worker does not end");
        let other = insert(&mut table);
        assert_ne!(other.index, key.index);
        let connection = table.get(other).unwrap();
        table.fill(key, connection);
        assert!(table.get(key).is_some());
        let unfilled = table.reserve();
        table.give_back(unfilled);
        assert_ne!(table.reserve(), unfilled);
    }

    #[test]
    fn it_knows_how_many_and_which_it_holds() {
        let mut table = Table::default();
        let keys = [(); 4].map(|()| insert(&mut table));
        table.remove(keys[1]);
        table.remove(keys[3]);
        assert_eq!(table.len(), 2);
        let held: Vec<Key> = table.all().iter().map(|connection| connection.key).collect();
        assert_eq!(held, [keys[0], keys[2]]);
    }

    #[test]
    fn generations_come_round_without_a_panic() {
        let mut table = Table::default();
        insert(&mut table);
        table.places[0].generation = u32::MAX;
        assert!(table.remove(Key { index: 0, generation: u32::MAX }));
        assert_eq!(insert(&mut table), Key { index: 0, generation: 0 });
    }
}
