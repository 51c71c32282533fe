//! Numbers of NVIDIA's header, cuDNN 9.10.2: the descriptors that a convolution needs, and what
//! they consist of.

/// `cudnnBackendDescriptorType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Convolution = 1,
    Engine = 2,
    EngineConfig = 3,
    Heuristics = 4,
    ExecutionPlan = 5,
    Forward = 10,
    BackwardFilter = 11,
    BackwardData = 12,
    OperationGraph = 15,
    VariantPack = 16,
    Tensor = 17,
}

pub const KINDS: [Kind; 11] = [
    Kind::Convolution,
    Kind::Engine,
    Kind::EngineConfig,
    Kind::Heuristics,
    Kind::ExecutionPlan,
    Kind::Forward,
    Kind::BackwardFilter,
    Kind::BackwardData,
    Kind::OperationGraph,
    Kind::VariantPack,
    Kind::Tensor,
];

/// `cudnnBackendAttributeType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    Handle = 0,
    DataType = 1,
    Int64 = 3,
    Float = 4,
    VoidPtr = 6,
    ConvolutionMode = 7,
    HeurMode = 8,
    NumericalNote = 11,
    Descriptor = 15,
}

impl Elements {
    /// Bytes of one.
    pub fn size(self) -> usize {
        match self {
            Self::Handle | Self::Int64 | Self::VoidPtr | Self::Descriptor => 8,
            _ => 4,
        }
    }
}

pub const DATA_FLOAT: u64 = 0;
pub const DATA_BFLOAT16: u64 = 9;
pub const CROSS_CORRELATION: u64 = 1;
pub const HEUR_MODE_FALLBACK: u64 = 2;
pub const HEUR_MODE_A: u64 = 3;
pub const NOTE_TENSOR_CORE: u64 = 0;
pub const NOTE_NONDETERMINISTIC: u64 = 4;

/// An attribute that a caller sets.
pub struct Attribute {
    pub number: u32,
    pub name: &'static str,
    pub of: Kind,
    pub elements: Elements,
    pub count: i64,
    /// What descriptors among its elements may be.
    pub parts: &'static [Kind],
}

/// Each as `NAME = number of kind of descriptor: [elements; count] kinds of parts`.
macro_rules! attributes {
    ($($name:ident = $number:literal of $kind:ident: [$elements:ident; $count:literal] $($part:ident)*;)*) => {
        $(pub const $name: u32 = $number;)*
        pub const SETTABLE: &[Attribute] = &[$(Attribute {
            number: $name,
            name: concat!("CUDNN_ATTR_", stringify!($name)),
            of: Kind::$kind,
            elements: Elements::$elements,
            count: $count,
            parts: &[$(Kind::$part),*],
        }),*];
    };
}

attributes! {
    CONVOLUTION_COMP_TYPE = 100 of Convolution: [DataType; 1];
    CONVOLUTION_CONV_MODE = 101 of Convolution: [ConvolutionMode; 1];
    CONVOLUTION_DILATIONS = 102 of Convolution: [Int64; 2];
    CONVOLUTION_FILTER_STRIDES = 103 of Convolution: [Int64; 2];
    CONVOLUTION_POST_PADDINGS = 104 of Convolution: [Int64; 2];
    CONVOLUTION_PRE_PADDINGS = 105 of Convolution: [Int64; 2];
    CONVOLUTION_SPATIAL_DIMS = 106 of Convolution: [Int64; 1];
    ENGINEHEUR_MODE = 200 of Heuristics: [HeurMode; 1];
    ENGINEHEUR_OPERATION_GRAPH = 201 of Heuristics: [Descriptor; 1] OperationGraph;
    EXECUTION_PLAN_HANDLE = 400 of ExecutionPlan: [Handle; 1];
    EXECUTION_PLAN_ENGINE_CONFIG = 401 of ExecutionPlan: [Descriptor; 1] EngineConfig;
    OPERATION_CONVOLUTION_FORWARD_ALPHA = 700 of Forward: [Float; 1];
    OPERATION_CONVOLUTION_FORWARD_BETA = 701 of Forward: [Float; 1];
    OPERATION_CONVOLUTION_FORWARD_CONV_DESC = 702 of Forward: [Descriptor; 1] Convolution;
    OPERATION_CONVOLUTION_FORWARD_W = 703 of Forward: [Descriptor; 1] Tensor;
    OPERATION_CONVOLUTION_FORWARD_X = 704 of Forward: [Descriptor; 1] Tensor;
    OPERATION_CONVOLUTION_FORWARD_Y = 705 of Forward: [Descriptor; 1] Tensor;
    OPERATION_CONVOLUTION_BWD_DATA_ALPHA = 706 of BackwardData: [Float; 1];
    OPERATION_CONVOLUTION_BWD_DATA_BETA = 707 of BackwardData: [Float; 1];
    OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC = 708 of BackwardData: [Descriptor; 1] Convolution;
    OPERATION_CONVOLUTION_BWD_DATA_W = 709 of BackwardData: [Descriptor; 1] Tensor;
    OPERATION_CONVOLUTION_BWD_DATA_DX = 710 of BackwardData: [Descriptor; 1] Tensor;
    OPERATION_CONVOLUTION_BWD_DATA_DY = 711 of BackwardData: [Descriptor; 1] Tensor;
    OPERATION_CONVOLUTION_BWD_FILTER_ALPHA = 712 of BackwardFilter: [Float; 1];
    OPERATION_CONVOLUTION_BWD_FILTER_BETA = 713 of BackwardFilter: [Float; 1];
    OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC = 714 of BackwardFilter: [Descriptor; 1] Convolution;
    OPERATION_CONVOLUTION_BWD_FILTER_DW = 715 of BackwardFilter: [Descriptor; 1] Tensor;
    OPERATION_CONVOLUTION_BWD_FILTER_X = 716 of BackwardFilter: [Descriptor; 1] Tensor;
    OPERATION_CONVOLUTION_BWD_FILTER_DY = 717 of BackwardFilter: [Descriptor; 1] Tensor;
    OPERATIONGRAPH_HANDLE = 800 of OperationGraph: [Handle; 1];
    OPERATIONGRAPH_OPS = 801 of OperationGraph: [Descriptor; 1] Forward BackwardData BackwardFilter;
    TENSOR_BYTE_ALIGNMENT = 900 of Tensor: [Int64; 1];
    TENSOR_DATA_TYPE = 901 of Tensor: [DataType; 1];
    TENSOR_DIMENSIONS = 902 of Tensor: [Int64; 4];
    TENSOR_STRIDES = 903 of Tensor: [Int64; 4];
    TENSOR_UNIQUE_ID = 906 of Tensor: [Int64; 1];
    VARIANT_PACK_UNIQUE_IDS = 1000 of VariantPack: [Int64; 3];
    VARIANT_PACK_DATA_POINTERS = 1001 of VariantPack: [VoidPtr; 3];
    VARIANT_PACK_WORKSPACE = 1003 of VariantPack: [VoidPtr; 1];
}

// Attributes that can only be got.
pub const ENGINEHEUR_RESULTS: u32 = 202;
pub const ENGINECFG_ENGINE: u32 = 300;
pub const EXECUTION_PLAN_WORKSPACE_SIZE: u32 = 402;
pub const ENGINE_NUMERICAL_NOTE: u32 = 1303;
