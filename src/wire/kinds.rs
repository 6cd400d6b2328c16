//! The names of the framings, and sets of them: which of them a listener takes.
//!
//! The config reads and writes them by name; `detect` asks a listener's set.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A framing by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Length,
    Stream,
    Header,
    Http,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Length, Kind::Stream, Kind::Header, Kind::Http];

    /// As it stands in the config and in logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Length => "length",
            Kind::Stream => "stream",
            Kind::Header => "header",
            Kind::Http => "http",
        }
    }

    /// A number from 0 to 3, and back.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Framings that a listener takes. The default is all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kinds(u8);

impl Kinds {
    pub(crate) fn of(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self(kinds.into_iter().fold(0, |set, kind| set | kind.bit()))
    }

    /// Four bits, and back: any bits are a set, and none stand for the default.
    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    pub(crate) fn from_bits(bits: u8) -> Self {
        match bits & 0b1111 {
            0 => Self::default(),
            bits => Self(bits),
        }
    }

    pub(crate) fn contains(self, kind: Kind) -> bool {
        self.0 & kind.bit() != 0
    }

    /// The framing that needs no bytes to be recognised, as it is the only one.
    pub(crate) fn only(self) -> Option<Kind> {
        let mut kinds = self.iter();
        kinds.next().filter(|_| kinds.next().is_none())
    }

    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(crate) fn are_all(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |&kind| self.contains(kind))
    }
}

impl Default for Kinds {
    fn default() -> Self {
        Self::of(Kind::ALL)
    }
}

impl Serialize for Kinds {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

impl<'a> Deserialize<'a> for Kinds {
    fn deserialize<D: Deserializer<'a>>(from: D) -> Result<Self, D::Error> {
        let kinds = Self::of(Vec::<Kind>::deserialize(from)?);
        if kinds.0 == 0 {
            Err(D::Error::custom("expected at least one framing, found none"))
        } else {
            Ok(kinds)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_written_by_name_and_read_back() {
        let both = Kinds::of([Kind::Http, Kind::Length]);
        assert_eq!(serde_json::to_string(&both).unwrap(), r#"["length","http"]"#);
        assert_eq!(serde_json::from_str::<Kinds>(r#"["http","length"]"#).unwrap(), both);
        assert!(serde_json::from_str::<Kinds>("[]").is_err());
        assert!(serde_json::from_str::<Kinds>(r#"["carrier pigeon"]"#).is_err());
        assert!(Kind::ALL.into_iter().all(|kind| Kinds::default().contains(kind)));
    }

    #[test]
    fn a_listener_is_pinned_when_one_framing_is_left() {
        assert_eq!(Kinds::of([Kind::Stream]).only(), Some(Kind::Stream));
        assert_eq!(Kinds::of([Kind::Stream, Kind::Http]).only(), None);
    }
}
