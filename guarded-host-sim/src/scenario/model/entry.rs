//! How a step is read: a table with a name, an expectation, and one more entry, which is the action. By hand, because
//! serde's flattening would lose the places in the file.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, EnumAccess, Error, IntoDeserializer, MapAccess, VariantAccess, Visitor},
    forward_to_deserialize_any,
};

use super::step::{Action, Step};

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Step, D::Error> {
        from.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Step;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a step: a table with one action")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Step, A::Error> {
        let (mut name, mut expect, mut action) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "name" => name = Some(map.next_value()?),
                "expect" => expect = Some(map.next_value()?),
                _ if action.is_some() => {
                    // A misspelled field is no action at all, and its error says so.
                    Action::deserialize(Entry(key.clone(), &mut map))?;
                    return Err(A::Error::custom(format!(
                        "a step has one action, and {key} is a second one"
                    )));
                }
                _ => action = Some(Action::deserialize(Entry(key, &mut map))?),
            }
        }
        let action = action.ok_or_else(|| A::Error::custom("a step needs an action: attest, start_vm, wait, …"))?;
        Ok(Step { name, expect, action })
    }
}

/// One entry of a map as an enum: its key names the variant, its value is the content.
struct Entry<'a, A>(String, &'a mut A);

impl<'de, A: MapAccess<'de>> Deserializer<'de> for Entry<'_, A> {
    type Error = A::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        visitor.visit_enum(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, 'a, A: MapAccess<'de>> EnumAccess<'de> for Entry<'a, A> {
    type Error = A::Error;
    type Variant = Content<'a, A>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Content<'a, A>), A::Error> {
        Ok((seed.deserialize(self.0.into_deserializer())?, Content(self.1)))
    }
}

struct Content<'a, A>(&'a mut A);

impl<'de, A: MapAccess<'de>> VariantAccess<'de> for Content<'_, A> {
    type Error = A::Error;

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.0.next_value_seed(seed)
    }

    fn unit_variant(self) -> Result<(), A::Error> {
        Err(A::Error::custom("an action has a table of fields"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.newtype_variant_seed(std::marker::PhantomData::<()>)
            .and(visitor.visit_none())
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        self.newtype_variant_seed(std::marker::PhantomData::<()>)
            .and(visitor.visit_none())
    }
}
