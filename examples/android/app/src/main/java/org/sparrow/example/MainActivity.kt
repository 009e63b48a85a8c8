package org.sparrow.example

import android.app.Activity
import android.content.Intent
import android.graphics.BitmapFactory
import android.net.Uri
import android.os.Bundle
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView
import java.util.concurrent.Executors

/** A button that chooses a photo, and the classes that the network rates highest. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private lateinit var answer: TextView

    /** Made by the worker when it is first needed, and used by it alone. */
    private val classifier = lazy { Classifier(THREADS) }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        answer = TextView(this).apply { setPadding(PADDING, PADDING, PADDING, PADDING) }
        val button = Button(this).apply {
            setText(R.string.choose)
            setOnClickListener { choose() }
        }
        setContentView(LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            addView(button)
            addView(answer)
        })
    }

    override fun onDestroy() {
        worker.execute { if (classifier.isInitialized()) classifier.value.close() }
        worker.shutdown()
        super.onDestroy()
    }

    private fun choose() {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
        startActivityForResult(intent, CHOOSE)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        super.onActivityResult(request, result, data)
        val photo = data?.data
        if (request != CHOOSE || result != RESULT_OK || photo == null) return
        worker.execute {
            val text = try {
                classify(photo)
            } catch (error: Exception) {
                error.message ?: error.toString()
            }
            runOnUiThread { answer.text = text }
        }
    }

    private fun classify(photo: Uri): String {
        val bitmap = contentResolver.openInputStream(photo).use { BitmapFactory.decodeStream(it) }
            ?: return "this is no photo"
        val network = classifier.value
        val begin = System.nanoTime()
        val scores = network.classify(bitmap)
        val milliseconds = (System.nanoTime() - begin) / 1e6
        val best = scores.take(TOP).joinToString("\n") { "class ${it.index}: ${it.score}" }
        return "$best\n\n${"%.1f".format(milliseconds)} ms, the photo's scaling included"
    }

    private companion object {
        const val CHOOSE = 1
        const val PADDING = 32
        const val THREADS = 4
        const val TOP = 5
    }
}
