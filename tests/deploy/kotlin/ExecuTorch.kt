// Stand-ins with the signatures that EdgeSkClassifier.kt needs of executorch-android 1.5.
@file:Suppress("UNUSED_PARAMETER")

package org.pytorch.executorch

import java.io.Closeable

class EValue {
    fun toStr(): String = ""

    fun toInt(): Long = 0

    fun toDouble(): Double = 0.0

    fun toBool(): Boolean = false

    fun toTensor(): Tensor = Tensor()

    companion object {
        @JvmStatic fun from(tensor: Tensor): EValue = EValue()
    }
}

class Tensor {
    val dataAsFloatArray: FloatArray get() = FloatArray(0)

    companion object {
        @JvmStatic fun fromBlob(data: FloatArray, shape: LongArray): Tensor = Tensor()
    }
}

open class Module : Closeable {
    open fun execute(methodName: String, vararg inputs: EValue): Array<EValue> = arrayOf()

    open fun forward(vararg inputs: EValue): Array<EValue> = arrayOf()

    open fun destroy() {}

    override fun close() {}

    companion object {
        @JvmStatic
        @JvmOverloads
        fun load(modelPath: String?, loadMode: Int = 0, numThreads: Int = 0): Module = Module()
    }
}
