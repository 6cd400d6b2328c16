//! The methods of a generation, and their places among those of all generations.
//!
//! A worker counts its calls by the number that a method has in its generation. Generations may have different methods,
//! and the sums of the whole service never go back, so each name gets one number for good.

/// Those of one generation, in the order of their numbers in an arena.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Methods {
    pub(in crate::supervisor) names: Vec<String>,
    /// The number of each in the sums of the whole service.
    pub(in crate::supervisor) numbers: Vec<usize>,
}

/// Every method there ever was.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct AllMethods {
    pub(in crate::supervisor) names: Vec<String>,
}

impl AllMethods {
    /// Takes in the methods of a generation.
    pub(in crate::supervisor) fn number(&mut self, names: Vec<String>) -> Methods {
        let numbers = names.iter().map(|name| self.number_of(name)).collect();
        Methods { names, numbers }
    }

    fn number_of(&mut self, name: &str) -> usize {
        let known = self.names.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_whatever_comes_and_goes() {
        let mut all = AllMethods::default();
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(all.number(names(&["ping", "old"])).numbers, [0, 1]);
        assert_eq!(all.number(names(&["new", "ping"])).numbers, [2, 0]);
        assert_eq!(all.number(names(&["old", "new", "ping"])).numbers, [1, 2, 0]);
        assert_eq!(all.names, ["ping", "old", "new"]);
    }
}
