//! Builds a graph of ONNX operators, node by node.

use std::collections::HashSet;

use super::proto::{
    AttributeProto, DimensionProto, FLOAT, GraphProto, INT64, NodeProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Version of ONNX's operators: the first one with `DeformConv`.
pub const OPSET: i64 = 19;
/// Version of the file format that belongs to it.
pub const IR_VERSION: i64 = 9;

/// A graph under construction. Functions that add nodes return the names of their outputs.
#[derive(Debug, Default)]
pub struct Graph {
    graph: GraphProto,
    /// Number of names given so far.
    count: usize,
}

/// Size of a dimension of an input or output.
#[derive(Debug, Clone, Copy)]
pub enum Dim<'a> {
    /// A fixed size.
    Fixed(i64),
    /// Name of a size that is known only when the model runs.
    Named(&'a str),
}

/// Name, element type, sizes and description of an input or output.
pub type Info<'a> = (&'a str, i32, &'a [Dim<'a>], &'a str);

/// An attribute that is an integer.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, 2) }
}

/// An attribute that is a list of integers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, 7) }
}

/// An attribute that is a float.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, 1) }
}

/// An attribute that is a string.
pub fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.as_bytes().to_vec()), ..attribute(name, 3) }
}

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind), ..Default::default() }
}

impl Graph {
    fn fresh(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{what}_{}", self.count)
    }

    /// Adds a call of an operator with `outputs` outputs.
    pub fn call(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        outputs: usize,
    ) -> Vec<String> {
        let name = self.fresh(operator);
        let output: Vec<String> = (0..outputs).map(|i| format!("{name}:{i}")).collect();
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: output.clone(),
            name: Some(name),
            op_type: Some(operator.to_owned()),
            attribute: attributes,
        });
        output
    }

    /// Adds a call of an operator with attributes and one output.
    pub fn with(&mut self, operator: &str, inputs: &[&str], a: Vec<AttributeProto>) -> String {
        self.call(operator, inputs, a, 1).remove(0)
    }

    /// Adds a call of an operator without attributes, with one output.
    pub fn op(&mut self, operator: &str, inputs: &[&str]) -> String {
        self.with(operator, inputs, vec![])
    }

    fn constant(&mut self, name: String, kind: i32, dims: &[i64], raw: Vec<u8>) -> String {
        self.graph.initializer.push(TensorProto {
            dims: dims.to_vec(),
            data_type: Some(kind),
            name: Some(name.clone()),
            raw_data: Some(raw),
        });
        name
    }

    /// Adds the constant `name`, f32.
    pub fn named(&mut self, name: &str, values: &[f64], dims: &[i64]) -> String {
        let raw = values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
        self.constant(name.to_owned(), FLOAT, dims, raw)
    }

    /// Adds a constant, f32.
    pub fn floats(&mut self, values: &[f64], dims: &[i64]) -> String {
        let name = self.fresh("constant");
        self.named(&name, values, dims)
    }

    /// Adds a scalar constant, f32.
    pub fn number(&mut self, value: f64) -> String {
        self.floats(&[value], &[])
    }

    /// Adds a constant vector, i64.
    pub fn integers(&mut self, values: &[i64]) -> String {
        let name = self.fresh("constant");
        self.integers_named(name, values, &[values.len() as i64])
    }

    /// Adds a scalar constant, i64.
    pub fn integer(&mut self, value: i64) -> String {
        let name = self.fresh("constant");
        self.integers_named(name, &[value], &[])
    }

    fn integers_named(&mut self, name: String, values: &[i64], dims: &[i64]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, INT64, dims, raw)
    }

    /// Adds an input.
    pub fn input(&mut self, info: Info) {
        self.graph.input.push(value(info));
    }

    /// Adds an input of integers, i64, that has a default value.
    pub fn optional_input(&mut self, info: Info, default: &[i64], dims: &[i64]) {
        self.integers_named(info.0.to_owned(), default, dims);
        self.input(info);
    }

    /// Makes a value an output with the name in `info`.
    pub fn output(&mut self, from: &str, info: Info) {
        self.graph.node.push(NodeProto {
            input: vec![from.to_owned()],
            output: vec![info.0.to_owned()],
            name: Some(format!("output_{}", info.0)),
            op_type: Some("Identity".to_owned()),
            attribute: vec![],
        });
        self.graph.output.push(value(info));
    }

    /// The finished graph, without constants that no node reads: runtimes warn about them.
    pub fn finish(mut self, name: &str) -> GraphProto {
        let read: HashSet<&String> = self.graph.node.iter().flat_map(|n| &n.input).collect();
        self.graph.initializer.retain(|t| t.name.as_ref().is_some_and(|n| read.contains(n)));
        GraphProto { name: Some(name.to_owned()), ..self.graph }
    }

    /// `x` times a number.
    pub fn scaled(&mut self, x: &str, factor: f64) -> String {
        let factor = self.number(factor);
        self.op("Mul", &[x, &factor])
    }

    /// `x` converted to an element type.
    pub fn cast(&mut self, x: &str, kind: i32) -> String {
        self.with("Cast", &[x], vec![int("to", i64::from(kind))])
    }

    /// `x` with a new shape; 0 keeps a size, -1 is the size that remains.
    pub fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.integers(shape);
        self.op("Reshape", &[x, &shape])
    }

    /// `x` with a new dimension of size 1.
    pub fn unsqueeze(&mut self, x: &str, axis: i64) -> String {
        let axes = self.integers(&[axis]);
        self.op("Unsqueeze", &[x, &axes])
    }

    /// The elements `from..to` of `x` along an axis.
    pub fn slice(&mut self, x: &str, axis: i64, from: i64, to: i64) -> String {
        let [starts, ends, axes] = [from, to, axis].map(|v| self.integers(&[v]));
        self.op("Slice", &[x, &starts, &ends, &axes])
    }

    /// The elements of `x` with the given indices along an axis.
    pub fn pick(&mut self, x: &str, axis: i64, indices: &[i64]) -> String {
        let indices = self.integers(indices);
        self.with("Gather", &[x, &indices], vec![int("axis", axis)])
    }

    /// Concatenates values along an axis.
    pub fn concat(&mut self, parts: &[String], axis: i64) -> String {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.with("Concat", &parts, vec![int("axis", axis)])
    }
}

fn value((name, kind, dims, doc): Info) -> ValueInfoProto {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(n) => DimensionProto { dim_value: Some(*n), dim_param: None },
        Dim::Named(n) => DimensionProto { dim_value: None, dim_param: Some((*n).to_owned()) },
    };
    let shape = TensorShapeProto { dim: dims.iter().map(size).collect() };
    let tensor = TensorTypeProto { elem_type: Some(kind), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { tensor_type: Some(tensor) }),
        doc_string: Some(doc.to_owned()),
    }
}
