// What samespace check --embeddings and --tensors read, written by an iOS app.

import Foundation

/// Writes app.csv. `rows`: file name ("000.png") and the embedding.
func writeEmbeddings(to url: URL, rows: [(name: String, embedding: [Float])]) throws {
    let lines = rows.map { row in row.name + "," + row.embedding.map { "\($0)" }.joined(separator: ",") }
    try (lines.joined(separator: "\n") + "\n").write(to: url, atomically: true, encoding: .utf8)
}

/// Writes tensors.bin. `tensors`: the model's inputs as RGB bytes (size * size * 3 each), in the order of the file names.
func writeTensors(to url: URL, tensors: [[UInt8]]) throws {
    try Data(tensors.joined()).write(to: url)
}
