//! How objects of known types look, where the usual way would not do.

/// The look of a type's objects.
#[derive(Debug)]
pub struct View {
    /// The last part of the type's name.
    pub kind: &'static str,
    /// What is drawn.
    pub shape: Shape,
}

/// What is drawn of an object.
#[derive(Debug)]
pub enum Shape {
    /// A row of a table; objects that agree in a property share one, under a title.
    Table {
        /// In order.
        columns: &'static [Column],
        /// The title and the property.
        group: Option<(&'static str, &'static str)>,
    },
    /// These properties, one in each line.
    List(&'static [&'static str]),
    /// This property alone.
    Line(&'static str),
}

/// A column.
#[derive(Debug)]
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// Where its cells come from.
    pub property: &'static str,
    /// Characters; as many as it takes, if none are given.
    pub width: Option<usize>,
    /// Whether it stands to the right; numbers, true and false do, if nothing is said.
    pub right: Option<bool>,
}

impl Column {
    /// A column with the name of its property.
    pub const fn of(property: &'static str) -> Column {
        Column {
            title: property,
            property,
            width: None,
            right: None,
        }
    }

    /// A column with a title of its own.
    pub const fn titled(title: &'static str, property: &'static str) -> Column {
        Column {
            title,
            property,
            width: None,
            right: None,
        }
    }

    /// With so many characters.
    pub const fn wide(mut self, width: usize) -> Column {
        self.width = Some(width);
        self
    }

    /// To the right.
    pub const fn right(mut self) -> Column {
        self.right = Some(true);
        self
    }
}
