//! What the members of a struct are called, asked of the type itself: it says so to whoever offers it something to be made from.

use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

/// The names that members of a struct may be sent by, other names that it takes for them included; None of another type.
pub(super) fn of<P: DeserializeOwned>() -> Option<&'static [&'static str]> {
    let mut names = None;
    // It is given nothing, so it is never made.
    let _ = P::deserialize(Offer(&mut names));
    names
}

/// Offers nothing, and hears what would have been taken.
struct Offer<'a>(&'a mut Option<&'static [&'static str]>);

fn nothing<T>() -> Result<T, Error> {
    Err(Error::custom("nothing is offered"))
}

impl<'de> Deserializer<'de> for Offer<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = Some(fields);
        nothing()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        nothing()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    #[expect(dead_code, reason = "only its names are looked at")]
    struct Page {
        page_width: u32,
        #[serde(alias = "content")]
        text: String,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its names are looked at")]
    struct Wrapped(Page);

    #[test]
    fn a_struct_says_what_its_members_are_called_and_other_types_say_nothing() {
        for found in [of::<Page>(), of::<Option<Page>>(), of::<Wrapped>(), of::<Box<Page>>()] {
            let mut names = found.expect("names").to_vec();
            names.sort_unstable();
            assert_eq!(names, ["content", "pageWidth", "text"]);
        }
        assert_eq!(of::<HashMap<String, u8>>(), None);
        assert_eq!(of::<serde_json::Value>(), None);
        assert_eq!(of::<(u8, u8)>(), None);
        assert_eq!(of::<String>(), None);
        assert_eq!(of::<()>(), None);
    }
}
