// The native side of Classifier.kt: a network of one float32 input whose first output rates classes.
#include <jni.h>
#include <stdint.h>
#include <stdlib.h>

#include SPARROW_HEADER

enum { MAX_OUTPUTS = 16 };

// A model, and memory for its outputs.
struct classifier {
  sparrow_model *model;
  sparrow_buffer outputs[MAX_OUTPUTS];
  size_t output_count;
};

static void throw_error(JNIEnv *env, const char *class_name, const char *message) {
  jclass class = (*env)->FindClass(env, class_name);
  if (class) (*env)->ThrowNew(env, class, message);
}

static void destroy(struct classifier *classifier) {
  if (!classifier) return;
  sparrow_destroy(classifier->model);
  for (size_t index = 0; index < classifier->output_count; index++) free(classifier->outputs[index].data);
  free(classifier);
}

// Returns what is wrong, NULL for nothing.
static const char *create(struct classifier *classifier, int threads) {
  const sparrow_tensor *input = sparrow_input(&SPARROW_PROGRAM, 0), *output = sparrow_output(&SPARROW_PROGRAM, 0);
  if (!input || sparrow_input(&SPARROW_PROGRAM, 1) || input->type != SPARROW_FLOAT32)
    return "the network has not one input of float32";
  if (output->type != SPARROW_FLOAT32) return "the network's first output is not float32";
  for (; (output = sparrow_output(&SPARROW_PROGRAM, classifier->output_count)); classifier->output_count++) {
    if (classifier->output_count == MAX_OUTPUTS) return "the network has too many outputs";
    void *memory = malloc(output->bytes);
    if (!memory) return "no memory for the outputs";
    classifier->outputs[classifier->output_count] = (sparrow_buffer){memory, output->bytes};
  }
  return sparrow_create(&SPARROW_PROGRAM, threads, &classifier->model) ? sparrow_last_error(NULL) : NULL;
}

JNIEXPORT jlong JNICALL Java_org_sparrow_example_Classifier_nativeCreate(JNIEnv *env, jobject self, jint threads) {
  (void)self;
  struct classifier *classifier = calloc(1, sizeof *classifier);
  const char *wrong = classifier ? create(classifier, threads) : "no memory";
  if (!wrong) return (jlong)(intptr_t)classifier;
  destroy(classifier);
  throw_error(env, "java/lang/IllegalStateException", wrong);
  return 0;
}

JNIEXPORT jlongArray JNICALL Java_org_sparrow_example_Classifier_nativeInputShape(JNIEnv *env, jobject self) {
  (void)self;
  const sparrow_tensor *input = sparrow_input(&SPARROW_PROGRAM, 0);
  jlong shape[SPARROW_MAX_RANK];
  for (int32_t axis = 0; axis < input->rank; axis++) shape[axis] = (jlong)input->shape[axis];
  jlongArray result = (*env)->NewLongArray(env, input->rank);
  if (result) (*env)->SetLongArrayRegion(env, result, 0, input->rank, shape);
  return result;
}

JNIEXPORT jfloatArray JNICALL Java_org_sparrow_example_Classifier_nativeRun(JNIEnv *env, jobject self, jlong handle,
                                                                            jfloatArray pixels) {
  (void)self;
  struct classifier *classifier = (struct classifier *)(intptr_t)handle;
  // Not a critical section: that would keep the garbage collector waiting as long as the network runs.
  jfloat *numbers = (*env)->GetFloatArrayElements(env, pixels, NULL);
  if (!numbers) return NULL;
  sparrow_buffer input = {numbers, (size_t)(*env)->GetArrayLength(env, pixels) * sizeof *numbers};
  int status = sparrow_run(classifier->model, &input, 1, classifier->outputs, classifier->output_count);
  (*env)->ReleaseFloatArrayElements(env, pixels, numbers, JNI_ABORT);
  if (status) {
    throw_error(env, "java/lang/IllegalStateException", sparrow_last_error(classifier->model));
    return NULL;
  }
  jsize count = (jsize)(classifier->outputs[0].bytes / sizeof(jfloat));
  jfloatArray result = (*env)->NewFloatArray(env, count);
  if (result) (*env)->SetFloatArrayRegion(env, result, 0, count, classifier->outputs[0].data);
  return result;
}

JNIEXPORT void JNICALL Java_org_sparrow_example_Classifier_nativeDestroy(JNIEnv *env, jobject self, jlong handle) {
  (void)env, (void)self;
  destroy((struct classifier *)(intptr_t)handle);
}
