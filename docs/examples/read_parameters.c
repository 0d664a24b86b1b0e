// Reads what a header written by detent.export(qmodel, "model.h", parameters={...}) holds. Needs a C99 compiler only:
//   cc -I folder_of_model_h read_parameters.c -o read_parameters && ./read_parameters classes
#include <stdio.h>
#include <string.h>

#include "model.h"

static const model_parameter *find(const char *name) {
  for (int i = 0; i < model_parameters_count; ++i) {
    if (strcmp(model_parameters[i].name, name) == 0) return &model_parameters[i];
  }
  return NULL;
}

// The code of a value, as the network takes it: rounded half away from zero, kept within the type.
static int32_t code_of(float value, const model_tensor *tensor, int32_t lowest, int32_t highest) {
  const float steps = value / tensor->scale;
  const float code = steps + (steps < 0 ? -0.5f : 0.5f);
  if (code + (float)tensor->zero_point <= (float)lowest) return lowest;
  if (code + (float)tensor->zero_point >= (float)highest) return highest;
  return (int32_t)code + tensor->zero_point;
}

static void show(const char *side, const model_tensor *tensor) {
  printf("%s %s: %s", side, tensor->name, tensor->dtype);
  for (int32_t i = 0; i < tensor->rank; ++i) printf("%s%d", i ? "x" : " ", (int)tensor->shape[i]);
  printf(", scale %.9g, zero point %d\n", (double)tensor->scale, (int)tensor->zero_point);
}

int main(int count, char **words) {
  // Bytes 4 to 7 of every TensorFlow Lite file.
  if (model_size < 8 || memcmp(model_data + 4, "TFL3", 4) != 0) return 1;
  printf("%zu bytes\n", model_size);
  for (int i = 0; i < model_inputs_count; ++i) show("input", &model_inputs[i]);
  for (int i = 0; i < model_outputs_count; ++i) show("output", &model_outputs[i]);
  if (model_inputs[0].scale > 0) printf("code of 0.5: %d\n", (int)code_of(0.5f, &model_inputs[0], -128, 127));
  // Parameters named on the command line.
  for (int i = 1; i < count; ++i) {
    const model_parameter *parameter = find(words[i]);
    if (parameter == NULL) {
      printf("no parameter %s\n", words[i]);
      return 2;
    }
    printf("%s =", parameter->name);
    for (int32_t j = 0; j < parameter->count; ++j) {
      if (parameter->numbers) printf(" %.17g", parameter->numbers[j]);
      if (parameter->texts) printf(" %s", parameter->texts[j]);
    }
    printf("\n");
  }
  return 0;
}
