//! The connections of a worker, each under a key that is never used twice.

use std::sync::Arc;

use super::connection::{Connection, Key};

/// Connections by their place; a freed place is used again under the next generation.
#[derive(Debug, Default)]
pub(super) struct Table {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    connection: Option<Arc<Connection>>,
}

impl Table {
    /// Puts a new connection in; `make` is given the key it will be known by.
    pub(super) fn insert(&mut self, make: impl FnOnce(Key) -> Connection) -> Arc<Connection> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            // Far more connections than a process can have descriptors.
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.places[index as usize];
        let connection = Arc::new(make(Key { index, generation: place.generation }));
        place.connection = Some(Arc::clone(&connection));
        connection
    }

    pub(super) fn get(&self, key: Key) -> Option<Arc<Connection>> {
        let place = self.places.get(key.index as usize)?;
        place.connection.as_ref().filter(|_| place.generation == key.generation).map(Arc::clone)
    }

    /// Takes a connection out; false when it had left before.
    pub(super) fn remove(&mut self, key: Key) -> bool {
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

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn all(&self) -> Vec<Arc<Connection>> {
        self.places.iter().filter_map(|place| place.connection.as_ref().map(Arc::clone)).collect()
    }
}
