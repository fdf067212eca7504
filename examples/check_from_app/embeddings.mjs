// What samespace check --embeddings and --tensors read, written by a web app, Node or React Native.

/** The text of app.json. rows: Map of file name ("000.png") to the embedding, a Float32Array. */
export function embeddingsFile(rows) {
  return JSON.stringify(Object.fromEntries([...rows].map(([name, row]) => [name, Array.from(row)])));
}

/** The bytes of tensors.bin. tensors: the model's inputs as RGB bytes (size * size * 3 each), in the order of the file names. */
export function tensorsFile(tensors) {
  const bytes = new Uint8Array(tensors.reduce((length, tensor) => length + tensor.length, 0));
  let offset = 0;
  for (const tensor of tensors) {
    bytes.set(tensor, offset);
    offset += tensor.length;
  }
  return bytes;
}
