// Classify a photograph with an fp32 or int8 .pte that deploy/export.py wrote. Compiled against stand-ins for Android and
// ExecuTorch, not run; see README.md.
package edgesk

import android.graphics.Bitmap
import android.graphics.Color
import android.graphics.ImageDecoder
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import kotlin.math.exp

class EdgeSkClassifier(path: String) : AutoCloseable {
    private val module = Module.load(path)
    private val text = module.execute("labels")[0].toStr()
    private val labels = if (text.isEmpty()) emptyList() else text.lines() // "".lines() is one empty line
    private val size = module.execute("input_size").map { it.toInt().toInt() } // C, H, W
    private val cropPct = module.execute("crop_pct")[0].toDouble()
    private val hasSoftmax = module.execute("softmax")[0].toBool()

    /**
     * Labels with probabilities of a photograph, the likeliest first. Android 9 (API 28) decodes it, HEIC too, and turns it
     * upright as its EXIF orientation says.
     */
    fun classify(photo: ImageDecoder.Source): List<Pair<String, Float>> =
        classify(ImageDecoder.decodeBitmap(photo) { decoder, _, _ -> decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE })

    /** The same for an upright bitmap; BitmapFactory leaves a photograph lying as the sensor was. */
    fun classify(bitmap: Bitmap): List<Pair<String, Float>> {
        val (_, height, width) = size
        val pixels = IntArray(width * height)
        val resized = resize(readable(bitmap), (width / cropPct).toInt(), (height / cropPct).toInt())
        val (left, top) = Pair((resized.width - width) / 2, (resized.height - height) / 2)
        resized.getPixels(pixels, 0, width, left, top, width, height)
        val input = FloatArray(3 * pixels.size) // NCHW, RGB, [0, 1]; normalisation is inside the file
        for ((i, pixel) in pixels.withIndex()) {
            input[i] = Color.red(pixel) / 255f
            input[pixels.size + i] = Color.green(pixel) / 255f
            input[2 * pixels.size + i] = Color.blue(pixel) / 255f
        }
        val shape = longArrayOf(1, 3, height.toLong(), width.toLong())
        val output = module.forward(EValue.from(Tensor.fromBlob(input, shape)))[0].toTensor().dataAsFloatArray
        val shares = if (hasSoftmax) output.toList() else softmax(output)
        return shares.mapIndexed { i, share -> labels.getOrElse(i) { "class $i" } to share }
            .sortedByDescending { it.second }
    }

    /** A HARDWARE bitmap, which image loaders make by default, lies in the GPU's memory: getPixels() throws. */
    private fun readable(bitmap: Bitmap): Bitmap =
        if (bitmap.config != Bitmap.Config.HARDWARE) bitmap
        else checkNotNull(bitmap.copy(Bitmap.Config.ARGB_8888, false)) { "out of memory" }

    /** In proportion, to cover both; halved first while that is possible, because Android's bilinear filter aliases. */
    private fun resize(bitmap: Bitmap, resizedWidth: Int, resizedHeight: Int): Bitmap {
        val wide = maxOf(resizedWidth, resizedHeight * bitmap.width / bitmap.height)
        val high = maxOf(resizedHeight, resizedWidth * bitmap.height / bitmap.width)
        var scaled = bitmap
        while (scaled.width >= 2 * wide && scaled.height >= 2 * high) {
            scaled = Bitmap.createScaledBitmap(scaled, scaled.width / 2, scaled.height / 2, true)
        }
        return Bitmap.createScaledBitmap(scaled, wide, high, true)
    }

    private fun softmax(logits: FloatArray): List<Float> {
        val largest = logits.max()
        val shares = logits.map { exp(it - largest) }
        val sum = shares.sum()
        return shares.map { it / sum }
    }

    override fun close() = module.destroy()
}
