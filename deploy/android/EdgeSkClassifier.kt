// Classify a bitmap with a .pte that deploy/export.py wrote. Not compiled here; see README.md.
package edgesk

import android.graphics.Bitmap
import android.graphics.Color
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import kotlin.math.exp

class EdgeSkClassifier(path: String) : AutoCloseable {
    private val module = Module.load(path)
    private val labels = module.execute("labels")[0].toStr().lines()
    private val size = module.execute("input_size").map { it.toInt().toInt() } // C, H, W

    /** Labels with probabilities, the likeliest first. */
    fun classify(bitmap: Bitmap): List<Pair<String, Float>> {
        val (_, height, width) = size
        val scaled = Bitmap.createScaledBitmap(centerSquare(bitmap), width, height, true)
        val pixels = IntArray(width * height)
        scaled.getPixels(pixels, 0, width, 0, 0, width, height)
        val input = FloatArray(3 * pixels.size) // NCHW, RGB, [0, 1]; normalisation is inside the file
        for ((i, pixel) in pixels.withIndex()) {
            input[i] = Color.red(pixel) / 255f
            input[pixels.size + i] = Color.green(pixel) / 255f
            input[2 * pixels.size + i] = Color.blue(pixel) / 255f
        }
        val shape = longArrayOf(1, 3, height.toLong(), width.toLong())
        val logits = module.forward(EValue.from(Tensor.fromBlob(input, shape)))[0].toTensor().dataAsFloatArray
        val largest = logits.max()
        val shares = logits.map { exp(it - largest) }
        return shares.mapIndexed { i, share -> labels.getOrElse(i) { "class $it" } to share / shares.sum() }
            .sortedByDescending { it.second }
    }

    private fun centerSquare(bitmap: Bitmap): Bitmap {
        val side = minOf(bitmap.width, bitmap.height)
        return Bitmap.createBitmap(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side)
    }

    override fun close() = module.destroy()
}
