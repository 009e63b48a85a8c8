package org.sparrow.example

import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Matrix
import android.graphics.Paint

/** A class and how the network rates it. */
data class Score(val index: Int, val score: Float)

/**
 * The network in libsparrow_jni.so. Its calls wait for one another; close it when it is no longer needed.
 *
 * @param threads Threads to run on, 1 to 64.
 * @throws IllegalStateException The network cannot be loaded.
 */
class Classifier(threads: Int) : AutoCloseable {
    private var handle = nativeCreate(threads)
    private val channels: Int
    private val height: Int
    private val width: Int

    init {
        val shape = nativeInputShape().map { it.toInt() }
        if (shape.size != 4 || shape[0] != 1 || shape[1] != 3) {
            close()
            throw IllegalStateException("the network takes $shape, expected [1, 3, height, width]")
        }
        channels = shape[1]
        height = shape[2]
        width = shape[3]
    }

    /** Rates a photo, the best class first. Takes as long as the network does: not for the main thread. */
    @Synchronized
    fun classify(photo: Bitmap): List<Score> {
        check(handle != 0L) { "the classifier is closed" }
        val scores = nativeRun(handle, numbers(photo))
        return scores.withIndex().map { Score(it.index, it.value) }.sortedByDescending { it.score }
    }

    @Synchronized
    override fun close() {
        if (handle != 0L) nativeDestroy(handle)
        handle = 0
    }

    /** Scales a photo to cover the input, cuts its middle out, and turns bytes into [3, height, width] numbers. */
    private fun numbers(photo: Bitmap): FloatArray {
        val scale = maxOf(width.toFloat() / photo.width, height.toFloat() / photo.height)
        val matrix = Matrix()
        matrix.setScale(scale, scale)
        matrix.postTranslate((width - scale * photo.width) / 2, (height - scale * photo.height) / 2)
        val fitted = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
        Canvas(fitted).drawBitmap(photo, matrix, Paint(Paint.FILTER_BITMAP_FLAG))
        val colors = IntArray(width * height)
        fitted.getPixels(colors, 0, width, 0, 0, width, height)
        fitted.recycle()
        val result = FloatArray(channels * colors.size)
        for (channel in 0 until channels) {
            val shift = 16 - 8 * channel // red, green, blue
            for (pixel in colors.indices) {
                val byte = colors[pixel] shr shift and 0xFF
                result[channel * colors.size + pixel] = (byte - MEAN[channel]) / DEVIATION[channel]
            }
        }
        return result
    }

    private external fun nativeCreate(threads: Int): Long

    private external fun nativeInputShape(): LongArray

    private external fun nativeRun(handle: Long, pixels: FloatArray): FloatArray

    private external fun nativeDestroy(handle: Long)

    private companion object {
        // ImageNet's, on the scale of bytes: those that the network was trained with.
        val MEAN = floatArrayOf(123.675f, 116.28f, 103.53f)
        val DEVIATION = floatArrayOf(58.395f, 57.12f, 57.375f)

        init {
            System.loadLibrary("sparrow_jni")
        }
    }
}
