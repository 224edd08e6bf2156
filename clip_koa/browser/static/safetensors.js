// Tensors of a safetensors file: eight bytes of length, a header in JSON, the values.

const KINDS = { F32: Float32Array, F64: Float64Array };

export function readTensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const start = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  delete header.__metadata__;
  return Object.fromEntries(
    Object.entries(header).map(([name, { dtype, shape, data_offsets: [from, to] }]) => {
      const Kind = KINDS[dtype];
      if (!Kind) throw new Error(`${name} is of the type ${dtype}: F32 and F64 are read here.`);
      return [name, { shape, data: new Kind(bytes.slice(start + from, start + to).buffer) }];
    }),
  );
}
