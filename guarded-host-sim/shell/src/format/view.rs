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

/// The language's own types.
pub(crate) const CORE_VIEWS: &[View] = &[
    View {
        kind: "FileSystemInfo",
        shape: Shape::Table {
            columns: &[
                Column::of("Mode").wide(6),
                Column::titled("LastWriteTime", "ShortTime").wide(25).right(),
                Column::of("Length").wide(14).right(),
                Column::of("Name"),
            ],
            group: Some(("Directory", "DirectoryName")),
        },
    },
    View {
        kind: "CmdletInfo",
        shape: Shape::Table {
            columns: &[
                Column::of("CommandType").wide(15),
                Column::of("Name").wide(50),
                Column::of("Version").wide(10),
                Column::of("Source"),
            ],
            group: None,
        },
    },
    View {
        kind: "MemberDefinition",
        shape: Shape::Table {
            columns: &[Column::of("Name"), Column::of("MemberType"), Column::of("Definition")],
            group: Some(("TypeName", "TypeName")),
        },
    },
    View {
        kind: "PSSession",
        shape: Shape::Table {
            columns: &[
                Column::of("Id").wide(3),
                Column::of("Name").wide(15),
                Column::of("ComputerName").wide(15),
                Column::of("State").wide(13),
                Column::of("ConfigurationName").wide(22),
                Column::of("Availability"),
            ],
            group: None,
        },
    },
    View {
        kind: "PathInfo",
        shape: Shape::Table {
            columns: &[Column::of("Path")],
            group: None,
        },
    },
    View {
        kind: "PSModuleInfo",
        shape: Shape::Table {
            columns: &[
                Column::of("ModuleType").wide(10),
                Column::of("Version").wide(10),
                Column::of("Name").wide(35),
                Column::of("ExportedCommands"),
            ],
            group: None,
        },
    },
    View {
        kind: "FileHash",
        shape: Shape::Table {
            columns: &[
                Column::of("Algorithm").wide(15),
                Column::of("Hash").wide(70),
                Column::of("Path"),
            ],
            group: None,
        },
    },
];
