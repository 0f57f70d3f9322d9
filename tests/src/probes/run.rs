//! Runs a probe on a GPU or on the emulator.
use super::Probe;
use kernels_host::{Device, Error, Program, TiledMap};
use ptx_emulator::tensor::swizzle::Swizzle;
use ptx_emulator::tensor::tensor_map::{DataType, Fill, TensorMap, Tiled};
use ptx_emulator::{Grid, Module, Param};

/// The entry's name in every probe.
pub(super) const ENTRY: &str = "probe";

/// What the output holds after a launch on the GPU.
pub(super) fn on_gpu(probe: &Probe, device: &Device) -> Result<Vec<u8>, Error> {
    let mut buffers = probe.buffers.clone();
    let program = Program {
        ptx: &probe.ptx,
        entry: ENTRY,
        blocks: probe.blocks,
        threads: probe.threads,
        cluster: 1,
        shared: probe.shared,
        maps: &probe.maps,
    };
    device.run_program(&program, &mut buffers)?;
    Ok(buffers.swap_remove(probe.output))
}

/// What the output holds after a launch on the emulator.
pub(super) fn on_emulator(probe: &Probe, seed: u64) -> Result<Vec<u8>, String> {
    let module = Module::parse(&probe.ptx).map_err(|e| e.to_string())?;
    let fault = |e: ptx_emulator::Fault| format!("{e} (seed {seed})");
    let mut device = ptx_emulator::Device::new(seed);
    let mut addresses = Vec::new();
    for (number, buffer) in probe.buffers.iter().enumerate() {
        let address = device.alloc(&format!("p{number}"), buffer.len());
        device.write(address, buffer).map_err(fault)?;
        addresses.push(address);
    }
    let mut params: Vec<Param> = addresses.iter().map(|&address| Param::U64(address)).collect();
    for map in &probe.maps {
        params.push(Param::Bytes(encode(map, addresses[map.buffer])?));
    }
    let grid = Grid::linear(probe.blocks, probe.threads);
    device.launch(&module, ENTRY, grid, &params, probe.shared as usize).map_err(fault)?;
    device.read(addresses[probe.output], probe.buffers[probe.output].len()).map_err(fault)
}

fn encode(map: &TiledMap, address: u64) -> Result<Vec<u8>, String> {
    let swizzle = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
    let tiled = Tiled {
        data_type: DataType::from_driver(map.data_type).map_err(|e| e.to_string())?,
        address,
        dims: &map.dims,
        strides: &map.strides,
        box_dims: &map.box_dims,
        element_strides: &map.element_strides,
        swizzle: swizzle[map.swizzle as usize],
        fill: if map.nan_fill { Fill::Nan } else { Fill::Zero },
    };
    Ok(TensorMap::new(&tiled).map_err(|e| e.to_string())?.encode().to_vec())
}
