// Fields of the schema builder -> a JSON Schema, and what is wrong with them.

export const TYPES = ["text", "number", "integer", "yesno", "oneOf", "listOf"];

// A field is {name, type, options, required}; options is the text in which "one of" lists its values.
export const newField = (name = "") => ({ name, type: "text", options: "", required: true });

// The values of a list that was typed: by lines or commas, Chinese ones too.
export const splitList = (text) => text.split(/[,，、;；\n]/).map((part) => part.trim()).filter(Boolean);

export function toSchema(fields) {
  const properties = Object.fromEntries(fields.map((field) => [field.name.trim(), typeOf(field)]));
  const required = fields.filter((field) => field.required).map((field) => field.name.trim());
  return { type: "object", properties, required, additionalProperties: false };
}

function typeOf({ type, options }) {
  switch (type) {
    case "number":
    case "integer":
      return { type };
    case "yesno":
      return { type: "boolean" };
    case "oneOf":
      return { type: "string", enum: splitList(options) };
    case "listOf": {
      const values = splitList(options);
      return { type: "array", items: values.length ? { type: "string", enum: values } : { type: "string" } };
    }
    default:
      return { type: "string" };
  }
}

// What is wrong with a list of values: the key of a sentence, or "".
export function listFault(text, atLeast) {
  const values = splitList(text);
  if (values.length < atLeast) return "faultFew";
  if (values.length > 255) return "faultMany";
  return new Set(values).size < values.length ? "faultTwice" : "";
}

// What is wrong with each field: the key of a sentence, or "".
export function faults(fields) {
  const names = fields.map((field) => field.name.trim());
  return fields.map((field, i) => {
    if (!names[i]) return "faultName";
    if (names.indexOf(names[i]) !== i) return "faultSameName";
    if (field.type === "oneOf") return listFault(field.options, 2);
    return field.type === "listOf" ? listFault(field.options, 0) : "";
  });
}
