// Stand-ins with the signatures that EdgeSkClassifier.kt needs of Android; ImageDecoder.java has the rest.
@file:Suppress("UNUSED_PARAMETER")

package android.graphics

class Bitmap private constructor(val width: Int, val height: Int) {
    enum class Config { ARGB_8888, HARDWARE }

    val config: Config? = null

    fun copy(config: Config, isMutable: Boolean): Bitmap? = null

    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) {}

    companion object {
        @JvmStatic
        fun createScaledBitmap(source: Bitmap, width: Int, height: Int, filter: Boolean): Bitmap = source
    }
}

object Color {
    @JvmStatic fun red(color: Int): Int = 0

    @JvmStatic fun green(color: Int): Int = 0

    @JvmStatic fun blue(color: Int): Int = 0
}
