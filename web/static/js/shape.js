// How the answer is wanted: as text, as one of some choices, or as JSON with fields that are put together here.

import { button, el, newId } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { faults, listFault, newField, splitList, toSchema, TYPES } from "./schema.js";

const KINDS = ["text", "choice", "json"];

export class ShapePicker {
  #kind = "text";
  #options = "";
  #fields = [newField()];
  #system = "";
  #home;
  #touched = false; // what is wrong is said after the first change, not before it

  constructor(home) {
    this.#home = home;
    this.#render();
    onLanguage(() => this.#render());
  }

  // {kind: "text"}, {kind: "choice", options} or {kind: "json", fields}; null while something is wrong with it.
  get shape() {
    if (this.#kind === "choice") return listFault(this.#options, 2) ? null : { kind: "choice", options: splitList(this.#options) };
    if (this.#kind === "json") return this.#wrong() ? null : { kind: "json", fields: this.#fields.map((field) => ({ ...field })) };
    return { kind: "text" };
  }

  get system() {
    return this.#system.trim();
  }

  set(shape, system = this.#system) {
    this.#kind = shape.kind;
    if (shape.kind === "choice") this.#options = shape.options.join(", ");
    if (shape.kind === "json") this.#fields = shape.fields.map((field) => ({ ...field }));
    this.#system = system;
    this.#render();
  }

  // Shows what is wrong, and goes there.
  complain() {
    this.#touched = true;
    this.#check();
    this.#home.querySelector('[aria-invalid="true"]')?.focus();
  }

  #wrong() {
    return this.#fields.length === 0 || faults(this.#fields).some(Boolean);
  }

  #render() {
    const kinds = KINDS.map((kind) => {
      const input = el("input", { type: "radio", name: "shape", value: kind, checked: kind === this.#kind });
      input.onchange = () => {
        this.#kind = kind;
        this.#touched = false;
        this.#render();
        this.#home.querySelector(":checked").focus();
      };
      return el("label", { className: "pill" }, input, el("span", { textContent: t(`shape_${kind}`) }));
    });
    const row = el("fieldset", { className: "kinds" }, el("legend", { textContent: t("answerAs") }), ...kinds);
    const part = { text: () => [], choice: () => [this.#choices()], json: () => [this.#builder()] }[this.#kind];
    this.#home.replaceChildren(row, this.#instructions(), ...part());
    this.#check();
  }

  #instructions() {
    const field = el("textarea", { id: "system", rows: 2, value: this.#system, maxLength: 20_000 });
    field.oninput = () => {
      this.#system = field.value;
    };
    const label = el("label", { htmlFor: "system", textContent: t("systemHint") });
    return el("details", { className: "instructions", open: this.#system !== "" }, el("summary", { textContent: t("system") }), label, field);
  }

  #choices() {
    const field = el("input", { id: "options", value: this.#options, placeholder: t("optionsExample") });
    field.oninput = () => {
      this.#options = field.value;
      this.#touched = true;
      this.#check();
    };
    return el("div", { className: "builder" }, el("label", { htmlFor: "options", textContent: t("options") }), field, fault("options-fault", field));
  }

  #builder() {
    const rows = this.#fields.map((field, i) => this.#row(field, i));
    const add = button(t("addField"), () => {
      this.#fields.push(newField());
      this.#render();
      this.#home.querySelector(".builder-row:last-child input").focus();
    }, { className: "plain" });
    const shown = el("details", {}, el("summary", { textContent: t("showSchema") }), el("pre", { className: "schema", tabIndex: 0 }));
    const list = el("div", { className: "builder-rows", role: "group", ariaLabel: t("fields") }, ...rows);
    return el("div", { className: "builder" }, list, add, shown);
  }

  #row(field, i) {
    const named = (key) => `${t(key)} ${i + 1}`;
    const changed = () => {
      this.#touched = true;
      this.#check();
    };
    const name = el("input", { value: field.name, placeholder: t("fieldName"), ariaLabel: named("fieldName"), maxLength: 100 });
    name.oninput = () => {
      field.name = name.value;
      changed();
    };
    const type = el("select", { ariaLabel: named("fieldType") }, ...TYPES.map((value) => new Option(t(`type_${value}`), value, false, value === field.type)));
    const values = el("input", { value: field.options, ariaLabel: named("fieldValues") });
    const fit = () => {
      values.hidden = !["oneOf", "listOf"].includes(field.type);
      values.placeholder = t(field.type === "listOf" ? "valuesMaybe" : "optionsExample");
    };
    type.onchange = () => {
      field.type = type.value;
      fit();
      changed();
    };
    values.oninput = () => {
      field.options = values.value;
      changed();
    };
    const required = el("input", { type: "checkbox", checked: field.required, ariaLabel: `${t("required")}: ${named("field")}` });
    required.onchange = () => {
      field.required = required.checked;
      changed();
    };
    const remove = button("×", () => {
      this.#fields.splice(i, 1);
      this.#render();
      this.#home.querySelector(".builder button").focus();
    }, { className: "plain", ariaLabel: `${t("removeField")} ${i + 1}` });
    fit();
    return el("div", { className: "builder-row" }, name, type, values, el("label", {}, required, t("required")), remove, fault(newId(), name, values));
  }

  // Says what is wrong beside each field, and shows the schema as it is now.
  #check() {
    if (this.#kind === "choice") tell(this.#home.querySelector(".fault"), this.#touched ? listFault(this.#options, 2) : "", this.#home.querySelector("#options"));
    if (this.#kind !== "json") return;
    const found = faults(this.#fields);
    for (const [i, row] of [...this.#home.querySelectorAll(".builder-row")].entries()) {
      const [name, values] = row.querySelectorAll("input:not([type])");
      const ofName = ["faultName", "faultSameName"].includes(found[i]);
      tell(row.querySelector(".fault"), this.#touched ? found[i] : "", ofName ? name : values, ofName ? values : name);
    }
    this.#home.querySelector(".schema").textContent = this.#wrong() ? t("schemaLater") : JSON.stringify(toSchema(this.#fields), null, 2);
  }
}

function fault(id, ...described) {
  for (const node of described) node.setAttribute("aria-describedby", id);
  return el("span", { className: "fault", id });
}

function tell(place, key, at, other) {
  const sentence = key ? t(key) : "";
  if (place.textContent !== sentence) place.textContent = sentence;
  at.ariaInvalid = String(Boolean(key));
  if (other) other.ariaInvalid = "false";
}
