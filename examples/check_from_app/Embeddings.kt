// What samespace check --embeddings and --tensors read, written by an Android app (fetch it with adb pull).

import java.io.File

/** Writes app.json. [rows]: file name ("000.png") to the embedding. */
fun writeEmbeddings(file: File, rows: Map<String, FloatArray>) {
    val lines = rows.map { (name, row) -> "\"$name\": [${row.joinToString(", ")}]" }
    file.writeText(lines.joinToString(",\n", "{\n", "\n}\n"))
}

/** Writes tensors.bin. [tensors]: the model's inputs as RGB bytes (size * size * 3 each), in the order of the file names. */
fun writeTensors(file: File, tensors: List<ByteArray>) {
    file.outputStream().buffered().use { stream -> tensors.forEach { stream.write(it) } }
}
