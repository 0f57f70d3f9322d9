//! Kernel entries, declared once for both compilations.

/// A device address as a kernel parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

/// A `CUtensorMap` passed by value: 128 opaque bytes. (The build step raises its alignment in the
/// PTX to the 64 bytes that TMA needs: rustc accepts at most 16.)
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct TensorMap(pub [u64; 16]);

/// How a parameter type of the device declaration looks on the host.
pub trait Param {
    /// The host's type, same size and alignment.
    type Host: Copy;
}
impl<T> Param for *const T {
    type Host = DevicePtr;
}
impl<T> Param for *mut T {
    type Host = DevicePtr;
}
impl Param for u32 {
    type Host = u32;
}
impl Param for i32 {
    type Host = i32;
}
impl Param for u64 {
    type Host = u64;
}
impl Param for f32 {
    type Host = f32;
}

/// The arguments of a kernel, as the driver wants them.
pub trait KernelArgs {
    /// Calls `f` with one pointer per parameter, in declaration order.
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut core::ffi::c_void]) -> R) -> R;
}

/// A PTX entry with argument type `A`: its name and launch bounds.
#[derive(Debug)]
pub struct Entry<A> {
    /// The name in the PTX.
    pub name: &'static str,
    /// Threads per block (the block is one-dimensional).
    pub threads: u32,
    /// Blocks per cluster.
    pub cluster: u32,
    args: core::marker::PhantomData<fn(A)>,
}

impl<A> Clone for Entry<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A> Copy for Entry<A> {}

impl<A> Entry<A> {
    /// Used by [`entry!`](crate::entry).
    pub const fn new(name: &'static str, threads: u32, cluster: u32) -> Self {
        Entry { name, threads, cluster, args: core::marker::PhantomData }
    }
}

/// Declares PTX entries that share one parameter list.
///
/// ```text
/// entry! {
///     /// Arguments of the kernel.
///     pub struct AddRmsNorm { x: *const u16, out: *mut u16, width: u32, eps: f32 }
///     fn add_rms_norm_bf16(threads: 256, min_blocks: 4) = add_rms_norm::<Bf16>;
///     fn add_rms_norm_f16(threads: 256, min_blocks: 4) = add_rms_norm::<F16>;
/// }
/// ```
/// On the device each `fn` becomes an entry that calls the named body with the parameters. On the
/// host it becomes a constant [`Entry`] of the same name, the struct holds the arguments
/// ([`DevicePtr`] for pointers), and `ENTRIES` lists the names. Tensor maps come first, numbered:
/// `pub struct Gemm maps(0: a, 1: b) { … }`; the body gets `*const TensorMap` for each.
/// `cluster: N` sets the cluster size. A leading `#[only(sm_90a)]` leaves the entries out of the
/// other modules.
#[macro_export]
macro_rules! entry {
    (
        $(#[only($target:ident)])?
        $(#[doc = $doc:literal])*
        pub struct $Args:ident maps $maps:tt $params:tt
        $($entries:tt)+
    ) => {
        $crate::entry! { @struct [$($doc)*] $Args $maps $params }
        $crate::entry! { @entries [$($target)?] $Args $maps $params $($entries)+ }
    };
    (
        $(#[only($target:ident)])?
        $(#[doc = $doc:literal])*
        pub struct $Args:ident $params:tt
        $($entries:tt)+
    ) => {
        $crate::entry! { @struct [$($doc)*] $Args () $params }
        $crate::entry! { @entries [$($target)?] $Args () $params $($entries)+ }
    };
    (@struct [$($doc:literal)*] $Args:ident ($($index:literal: $map:ident),*) {
        $($(#[doc = $pdoc:literal])* $p:ident: $ty:ty),* $(,)?
    }) => {
        $(#[doc = $doc])*
        #[cfg(not(device))]
        #[derive(Clone, Copy, Debug)]
        pub struct $Args {
            $(#[doc = concat!("Tensor map, parameter ", $index, ".")] pub $map: $crate::prim::TensorMap,)*
            $($(#[doc = $pdoc])* #[allow(missing_docs)] pub $p: <$ty as $crate::prim::Param>::Host,)*
        }
        #[cfg(not(device))]
        impl $crate::prim::KernelArgs for $Args {
            fn with_params<R>(&self, f: impl FnOnce(&mut [*mut core::ffi::c_void]) -> R) -> R {
                f(&mut [
                    $(&raw const self.$map as *mut core::ffi::c_void,)*
                    $(&raw const self.$p as *mut core::ffi::c_void,)*
                ])
            }
        }
    };
    (@entries $target:tt $Args:ident $maps:tt $params:tt
        $(fn $name:ident(threads: $threads:expr, min_blocks: $blocks:expr $(, cluster: $cluster:expr)?) = $body:path;)+
    ) => {
        $(
            #[cfg(not(device))]
            #[allow(non_upper_case_globals)]
            #[doc = concat!("PTX entry `", stringify!($name), "`.")]
            pub const $name: $crate::prim::Entry<$Args> =
                $crate::prim::Entry::new(stringify!($name), $threads, 1 $(* $cluster)?);
            $crate::entry! { @one $target $name [$threads] [$blocks] [1 $(* $cluster)?] [$body] $maps $params }
        )+
        /// The entries of this declaration.
        pub const ENTRIES: &[&str] = &[$(stringify!($name)),+];
    };
    (@one [$($target:ident)?] $name:ident [$threads:expr] [$blocks:expr] [$cluster:expr] [$body:path]
        ($($index:literal: $map:ident),*) { $($(#[doc = $pdoc:literal])* $p:ident: $ty:ty),* $(,)? }
    ) => {
        // Type-checks the body against the parameter list on the host too.
        #[cfg(not(device))]
        const _: unsafe fn($($crate::entry!(@map $map),)* $($ty),*) = $body;
        #[cfg(all(device $(, $target)?))]
        #[unsafe(no_mangle)]
        #[allow(improper_ctypes_definitions)]
        pub unsafe extern "gpu-kernel" fn $name($($map: $crate::prim::TensorMap,)* $($p: $ty),*) {
            core::arch::asm!("// wootz.launch threads={} min_blocks={} cluster={}",
                const $threads, const $blocks, const $cluster, options(nomem, nostack, preserves_flags));
            $(
                let _ = $map;
                let $map: *const $crate::prim::TensorMap;
                core::arch::asm!(
                    concat!("mov.b64 {0}, ", stringify!($name), "_param_", $index, "; cvta.param.u64 {0}, {0};"),
                    out(reg64) $map, options(pure, nomem, nostack));
            )*
            $body($($map,)* $($p),*)
        }
    };
    (@map $map:ident) => { *const $crate::prim::TensorMap };
}
