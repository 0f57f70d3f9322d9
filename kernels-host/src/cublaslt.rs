//! NVIDIA's matrix product library, as a rival in benches and nothing else: it is loaded when a bench asks for it.
//!
//! Types are cudarc's; the library is opened here, because cudarc looks for the names of one CUDA version and
//! panics where there is none.
use crate::{Buffer, DType, Error, Stream, View, ViewMut};
use cudarc::cublaslt::sys;
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::path::PathBuf;

/// Device memory that algorithms may use.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Heuristic results that are asked for.
const ALGORITHMS: usize = 8;
/// File names, newest first.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// Declares the functions that are used, by cudarc's types.
macro_rules! functions {
    ($($name:ident: fn($($arg:ty),*) -> $result:ty;)*) => {
        #[allow(non_snake_case)]
        struct Functions { $($name: unsafe extern "C" fn($($arg),*) -> $result),* }

        impl Functions {
            /// Looks the functions up, or names the one that is missing.
            fn load(library: &'static Library) -> Result<Self, String> {
                Ok(Functions { $($name: {
                    // SAFETY: the type is cuBLASLt's declaration of that symbol, unchanged since CUDA 11.
                    let symbol = unsafe { library.get::<unsafe extern "C" fn($($arg),*) -> $result>(stringify!($name)) };
                    *symbol.map_err(|_| format!("{} is missing", stringify!($name)))?
                }),* })
            }
        }
    };
}
functions! {
    cublasLtGetVersion: fn() -> usize;
    cublasLtCreate: fn(*mut sys::cublasLtHandle_t) -> sys::cublasStatus_t;
    cublasLtDestroy: fn(sys::cublasLtHandle_t) -> sys::cublasStatus_t;
    cublasLtMatmulDescCreate:
        fn(*mut sys::cublasLtMatmulDesc_t, sys::cublasComputeType_t, sys::cudaDataType_t) -> sys::cublasStatus_t;
    cublasLtMatmulDescSetAttribute:
        fn(sys::cublasLtMatmulDesc_t, sys::cublasLtMatmulDescAttributes_t, *const c_void, usize) -> sys::cublasStatus_t;
    cublasLtMatmulDescDestroy: fn(sys::cublasLtMatmulDesc_t) -> sys::cublasStatus_t;
    cublasLtMatrixLayoutCreate:
        fn(*mut sys::cublasLtMatrixLayout_t, sys::cudaDataType_t, u64, u64, i64) -> sys::cublasStatus_t;
    cublasLtMatrixLayoutDestroy: fn(sys::cublasLtMatrixLayout_t) -> sys::cublasStatus_t;
    cublasLtMatmulPreferenceCreate: fn(*mut sys::cublasLtMatmulPreference_t) -> sys::cublasStatus_t;
    cublasLtMatmulPreferenceSetAttribute:
        fn(
            sys::cublasLtMatmulPreference_t, sys::cublasLtMatmulPreferenceAttributes_t, *const c_void, usize
        ) -> sys::cublasStatus_t;
    cublasLtMatmulPreferenceDestroy: fn(sys::cublasLtMatmulPreference_t) -> sys::cublasStatus_t;
    cublasLtMatmulAlgoGetHeuristic:
        fn(
            sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t,
            sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatmulPreference_t, c_int,
            *mut sys::cublasLtMatmulHeuristicResult_t, *mut c_int
        ) -> sys::cublasStatus_t;
    cublasLtMatmul:
        fn(
            sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t, *const c_void, *const c_void, sys::cublasLtMatrixLayout_t,
            *const c_void, sys::cublasLtMatrixLayout_t, *const c_void, *const c_void, sys::cublasLtMatrixLayout_t,
            *mut c_void, sys::cublasLtMatrixLayout_t, *const sys::cublasLtMatmulAlgo_t, *mut c_void, usize,
            sys::cudaStream_t
        ) -> sys::cublasStatus_t;
}

fn check(status: sys::cublasStatus_t, call: &str) -> Result<(), Error> {
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        _ => Err(Error::CublasLt { call: call.to_owned(), status: format!("{status:?}") }),
    }
}

/// The library, open on a GPU, with its workspace.
pub struct CublasLt {
    functions: Functions,
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
}

impl CublasLt {
    /// Opens `file`, or else the library by its names where the loader looks, then in `folders`.
    ///
    /// # Errors
    /// There is none, or it does not work with this driver.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn open(stream: &Stream, file: Option<PathBuf>, folders: &[PathBuf]) -> Result<Self, Error> {
        let places = std::iter::once(PathBuf::new()).chain(folders.iter().cloned());
        let candidates: Vec<PathBuf> = match file {
            Some(file) => vec![file],
            None => places.flat_map(|place| NAMES.map(|name| place.join(name))).collect(),
        };
        let mut failures = Vec::new();
        for path in candidates {
            // SAFETY: the library's initialisers are NVIDIA's; they expect nothing of the process.
            match unsafe { Library::new(&path) } {
                // Never unloaded: its functions are copied out of it.
                Ok(library) => match Functions::load(Box::leak(Box::new(library))) {
                    Ok(functions) => return Self::new(stream, functions),
                    Err(problem) => failures.push(format!("{}: {problem}", path.display())),
                },
                Err(_) => failures.push(path.display().to_string()),
            }
        }
        Err(Error::NoCublasLt { tried: failures.join(", ") })
    }

    fn new(stream: &Stream, functions: Functions) -> Result<Self, Error> {
        // Makes the GPU's context current, which is the one that the handle is made for.
        let workspace = Buffer::new(stream.device(), DType::F32, WORKSPACE_BYTES / 4)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes the handle.
        check(unsafe { (functions.cublasLtCreate)(&mut handle) }, "cublasLtCreate")?;
        Ok(CublasLt { functions, handle, workspace })
    }

    /// Such as "13.1.0".
    pub fn version(&self) -> String {
        // SAFETY: takes nothing.
        let version = unsafe { (self.functions.cublasLtGetVersion)() };
        format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100)
    }

    /// Prepares `out = a · wᵀ`, bf16 with f32 accumulation: `a` [m, k], `w` [n, k], `out` [m, n], rows contiguous; finds
    /// the library's eight best guesses at an algorithm.
    pub fn product(&self, m: usize, n: usize, k: usize) -> Result<Product<'_>, Error> {
        let mut product = Product {
            library: self,
            size: [m, n, k],
            operation: std::ptr::null_mut(),
            layouts: [std::ptr::null_mut(); 3],
            algorithms: Vec::new(),
        };
        product.describe()?;
        product.algorithms = product.heuristics()?;
        Ok(product)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once; products borrow self.
        let _ = unsafe { (self.functions.cublasLtDestroy)(self.handle) };
    }
}

/// A matrix product of one size.
pub struct Product<'a> {
    library: &'a CublasLt,
    size: [usize; 3],
    operation: sys::cublasLtMatmulDesc_t,
    /// Of w, a and out, as cuBLAS sees them: column-major and so transposed.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
}

impl Product<'_> {
    /// Algorithms to choose from, the library's favourite first.
    pub fn algorithms(&self) -> usize {
        self.algorithms.len()
    }

    fn describe(&mut self) -> Result<(), Error> {
        let functions = &self.library.functions;
        let [m, n, k] = self.size.map(|size| size as u64);
        let (f32, bf16) = (sys::cudaDataType_t::CUDA_R_32F, sys::cudaDataType_t::CUDA_R_16BF);
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: writes the descriptor.
        let created = unsafe { (functions.cublasLtMatmulDescCreate)(&mut self.operation, compute, f32) };
        check(created, "cublasLtMatmulDescCreate")?;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        // cublasOperation_t, which is not among cudarc's types: 0 as it is, 1 transposed.
        let operations: [(_, i32); 2] =
            [(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 1), (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, 0)];
        for (attribute, operation) in operations {
            let (value, len) = ((&raw const operation).cast(), size_of_val(&operation));
            // SAFETY: the value is a cublasOperation_t, as both attributes want.
            let set = unsafe { (functions.cublasLtMatmulDescSetAttribute)(self.operation, attribute, value, len) };
            check(set, "cublasLtMatmulDescSetAttribute")?;
        }
        // outᵀ [n, m] = (wᵀ [k, n])ᵀ · aᵀ [k, m], each column-major without gaps.
        for (layout, (rows, cols)) in self.layouts.iter_mut().zip([(k, n), (k, m), (n, m)]) {
            // SAFETY: writes the layout.
            let created = unsafe { (functions.cublasLtMatrixLayoutCreate)(layout, bf16, rows, cols, rows as i64) };
            check(created, "cublasLtMatrixLayoutCreate")?;
        }
        Ok(())
    }

    fn heuristics(&self) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, Error> {
        let functions = &self.library.functions;
        let [w, a, out] = self.layouts;
        let mut preference = std::ptr::null_mut();
        let mut count = 0;
        // SAFETY: plain integers and an opaque array: all zeros is a value.
        let mut results: [sys::cublasLtMatmulHeuristicResult_t; ALGORITHMS] = unsafe { std::mem::zeroed() };
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = WORKSPACE_BYTES as u64;
        // SAFETY: the descriptors were created by `describe`; the workspace's size is a u64; at most `ALGORITHMS`
        // results are written.
        let found = unsafe {
            let created = (functions.cublasLtMatmulPreferenceCreate)(&mut preference);
            check(created, "cublasLtMatmulPreferenceCreate")?;
            let set =
                (functions.cublasLtMatmulPreferenceSetAttribute)(preference, attribute, (&raw const bytes).cast(), 8);
            let found = (functions.cublasLtMatmulAlgoGetHeuristic)(
                self.library.handle,
                self.operation,
                w,
                a,
                out,
                out,
                preference,
                ALGORITHMS as c_int,
                results.as_mut_ptr(),
                &mut count,
            );
            let _ = (functions.cublasLtMatmulPreferenceDestroy)(preference);
            check(set, "cublasLtMatmulPreferenceSetAttribute")?;
            found
        };
        let [m, n, k] = self.size;
        check(found, &format!("cublasLtMatmulAlgoGetHeuristic for m = {m}, n = {n}, k = {k}"))?;
        let results = &results[..(count.max(0) as usize).min(ALGORITHMS)];
        let usable = results.iter().filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(usable.map(|result| result.algo).collect())
    }

    /// Queues the product by algorithm number `algorithm`.
    ///
    /// # Panics
    /// If a view does not have the product's shape, has gaps, or there is no such algorithm.
    pub fn launch(
        &self,
        algorithm: usize,
        a: View<'_>,
        w: View<'_>,
        out: ViewMut<'_>,
        stream: &Stream,
    ) -> Result<(), Error> {
        let [m, n, k] = self.size;
        let shapes = [(a.rows(), a.cols()), (w.rows(), w.cols()), (out.rows(), out.cols())];
        assert_eq!(shapes, [(m, k), (n, k), (m, n)], "shapes of a product of {m} x {n} x {k}");
        assert!(a.is_contiguous() && w.is_contiguous() && out.is_contiguous());
        assert!([a.dtype(), w.dtype(), out.dtype()] == [DType::Bf16; 3]);
        let (one, zero) = (1f32, 0f32);
        let out_ptr = out.ptr().0 as *mut c_void;
        // SAFETY: the views were checked to have the shapes that the layouts describe; the scalars are f32, as the
        // operation was created with, and read before the call returns; the workspace has the size that is named.
        let status = unsafe {
            (self.library.functions.cublasLtMatmul)(
                self.library.handle,
                self.operation,
                (&raw const one).cast(),
                w.ptr().0 as *const c_void,
                self.layouts[0],
                a.ptr().0 as *const c_void,
                self.layouts[1],
                (&raw const zero).cast(),
                out_ptr,
                self.layouts[2],
                out_ptr,
                self.layouts[2],
                &self.algorithms[algorithm],
                self.library.workspace.view().ptr().0 as *mut c_void,
                WORKSPACE_BYTES,
                stream.handle().cast(),
            )
        };
        check(status, &format!("cublasLtMatmul for m = {m}, n = {n}, k = {k}"))
    }
}

impl Drop for Product<'_> {
    fn drop(&mut self) {
        let functions = &self.library.functions;
        // SAFETY: created by `describe` unless null, destroyed once.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = (functions.cublasLtMatrixLayoutDestroy)(layout);
            }
            if !self.operation.is_null() {
                let _ = (functions.cublasLtMatmulDescDestroy)(self.operation);
            }
        }
    }
}
