// Calls the Android example's native functions with a pretend Java machine: jni_check FILE
//
// Prints the input's shape, the outputs for the numbers in FILE, and what is thrown for wrong arguments.
#include <jni.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

JNIEXPORT jlong JNICALL Java_org_sparrow_example_Classifier_nativeCreate(JNIEnv *env, jobject self, jint threads);
JNIEXPORT jlongArray JNICALL Java_org_sparrow_example_Classifier_nativeInputShape(JNIEnv *env, jobject self);
JNIEXPORT jfloatArray JNICALL Java_org_sparrow_example_Classifier_nativeRun(JNIEnv *env, jobject self, jlong handle,
                                                                            jfloatArray pixels);
JNIEXPORT void JNICALL Java_org_sparrow_example_Classifier_nativeDestroy(JNIEnv *env, jobject self, jlong handle);

struct array {
  jsize count;
  int borrowed;
  void *elements;
};

static struct array *make_array(jsize count, size_t bytes) {
  struct array *array = malloc(sizeof *array);
  *array = (struct array){count, 0, calloc((size_t)count, bytes)};
  return array;
}

static jclass find_class(JNIEnv *env, const char *name) {
  (void)env;
  return (jclass)(void *)name;
}

static jint throw_new(JNIEnv *env, jclass class, const char *message) {
  (void)env;
  printf("thrown %s: %s\n", (const char *)class, message);
  return 0;
}

static jsize get_length(JNIEnv *env, jarray array) {
  (void)env;
  return ((struct array *)array)->count;
}

static jlongArray new_longs(JNIEnv *env, jsize count) {
  (void)env;
  return (jlongArray)make_array(count, sizeof(jlong));
}

static jfloatArray new_floats(JNIEnv *env, jsize count) {
  (void)env;
  return (jfloatArray)make_array(count, sizeof(jfloat));
}

static void set_longs(JNIEnv *env, jlongArray array, jsize start, jsize count, const jlong *from) {
  (void)env;
  memcpy((jlong *)((struct array *)array)->elements + start, from, (size_t)count * sizeof *from);
}

static void set_floats(JNIEnv *env, jfloatArray array, jsize start, jsize count, const jfloat *from) {
  (void)env;
  memcpy((jfloat *)((struct array *)array)->elements + start, from, (size_t)count * sizeof *from);
}

static jfloat *borrow(JNIEnv *env, jfloatArray array, jboolean *is_copy) {
  (void)env, (void)is_copy;
  ((struct array *)array)->borrowed++;
  return ((struct array *)array)->elements;
}

static void give_back(JNIEnv *env, jfloatArray array, jfloat *elements, jint mode) {
  (void)env;
  if (elements == ((struct array *)array)->elements && mode == JNI_ABORT) ((struct array *)array)->borrowed--;
}

int main(int count, char **arguments) {
  struct JNINativeInterface_ functions = {
      .FindClass = find_class,
      .ThrowNew = throw_new,
      .GetArrayLength = get_length,
      .NewLongArray = new_longs,
      .NewFloatArray = new_floats,
      .SetLongArrayRegion = set_longs,
      .SetFloatArrayRegion = set_floats,
      .GetFloatArrayElements = borrow,
      .ReleaseFloatArrayElements = give_back,
  };
  JNIEnv table = &functions, *env = &table;
  FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
  if (!file) return 2;

  struct array *shape = (struct array *)Java_org_sparrow_example_Classifier_nativeInputShape(env, NULL);
  jsize numbers = 1;
  printf("shape");
  for (jsize axis = 0; axis < shape->count; axis++) {
    jlong size = ((jlong *)shape->elements)[axis];
    printf(" %lld", (long long)size);
    numbers *= (jsize)size;
  }
  printf("\n");

  struct array *pixels = make_array(numbers, sizeof(jfloat));
  if (fread(pixels->elements, sizeof(jfloat), (size_t)numbers, file) != (size_t)numbers) return 2;
  fclose(file);
  jlong handle = Java_org_sparrow_example_Classifier_nativeCreate(env, NULL, 2);
  jfloatArray result = Java_org_sparrow_example_Classifier_nativeRun(env, NULL, handle, (jfloatArray)pixels);
  struct array *scores = (struct array *)result;
  printf("scores");
  for (jsize index = 0; index < scores->count; index++) printf(" %.6f", (double)((jfloat *)scores->elements)[index]);
  printf("\n");

  pixels->count--;
  result = Java_org_sparrow_example_Classifier_nativeRun(env, NULL, handle, (jfloatArray)pixels);
  printf("short array %s, borrowed %d\n", result ? "accepted" : "refused", pixels->borrowed);
  Java_org_sparrow_example_Classifier_nativeDestroy(env, NULL, handle);
  handle = Java_org_sparrow_example_Classifier_nativeCreate(env, NULL, 99);
  printf("handle %lld\n", (long long)handle);
  return 0;
}
