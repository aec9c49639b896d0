// What the user presses, types and chooses.

import { Devices, sentenceOf } from "./audio.js";

const SETTINGS = "echox-settings"; // in localStorage

const $ = (id) => document.getElementById(id);

/** Passes what the user does on to the page. */
export class Controls {
  constructor(page) {
    this.page = page;
  }

  start() {
    this.restoreSettings();
    this.bindTalking();
    this.bindControls();
    this.bindDialogs();
    this.listDevices();
  }

  bindTalking() {
    const talk = $("talk");
    talk.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      talk.setPointerCapture(event.pointerId);
      this.page.press();
    });
    for (const type of ["pointerup", "pointercancel"]) {
      talk.addEventListener(type, () => this.page.release());
    }
    talk.addEventListener("contextmenu", (event) => event.preventDefault());
    talk.addEventListener("click", ({ detail }) => {
      // Screen readers and the Enter key click without pressing.
      if (detail === 0) this.page.press({ isClick: true });
    });
    document.addEventListener("keydown", (event) => this.takeKey(event, true));
    document.addEventListener("keyup", (event) => this.takeKey(event, false));
    window.addEventListener("blur", () => this.page.release());
  }

  takeKey(event, isDown) {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && isDown) {
      this.page.stop();
    } else if (event.code === "Space" && isForTalking(event.target)) {
      event.preventDefault();
      if (isDown && !event.repeat) this.page.press();
      if (!isDown) this.page.release();
    }
  }

  bindControls() {
    $("stop").addEventListener("click", () => {
      this.page.stop();
      $("talk").focus();
    });
    $("notice").querySelector("button").addEventListener("click", () => this.page.notify(""));
    for (const radio of document.querySelectorAll("input[name=mode]")) {
      radio.addEventListener("change", () => this.page.useMode(radio.value));
    }
    $("text-only").querySelector("input").addEventListener("change", ({ target }) => {
      this.page.speaks = !target.checked;
      this.saveSettings();
      this.page.updateSession();
    });
    $("typed").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = $("question").value.trim();
      if (!text) return;
      $("question").value = "";
      this.page.ask(text);
    });
  }

  bindDialogs() {
    $("open-settings").addEventListener("click", () => {
      this.listDevices();
      $("settings").showModal();
    });
    $("microphone").addEventListener("change", ({ target }) =>
      this.useDevice(() => this.page.devices.useMicrophone(target.value)),
    );
    $("speaker").addEventListener("change", ({ target }) =>
      this.useDevice(() => this.page.devices.useSpeaker(target.value)),
    );
    navigator.mediaDevices?.addEventListener("devicechange", () => this.listDevices());
    $("clear").addEventListener("click", () => this.page.clear());
    $("forget-key").addEventListener("click", () => {
      $("settings").close();
      this.page.endSession();
      this.page.connection.useKey("");
    });
    $("key-dialog").addEventListener("close", () => {
      const key = $("key").value.trim();
      $("key").value = "";
      if (key) this.page.connection.useKey(key);
    });
  }

  async useDevice(use) {
    try {
      await use();
      this.saveSettings();
    } catch (error) {
      $("settings").close();
      this.page.notify(sentenceOf(error));
    }
  }

  async listDevices() {
    const { microphones, speakers } = await this.page.devices.list();
    fill($("microphone"), microphones, this.page.devices.microphoneId);
    fill($("speaker"), speakers, this.page.devices.speakerId);
    $("speaker").disabled = !Devices.canChooseSpeaker;
    const notes = [];
    if (microphones.length === 0) notes.push("Devices are listed once the microphone is allowed.");
    if (!Devices.canChooseSpeaker) notes.push("This browser plays on the system's speaker alone.");
    $("devices-note").textContent = notes.join(" ");
  }

  askForKey(wrong) {
    $("key-sentence").textContent = wrong
      ? "The server did not take this key."
      : "The server asks for an API key.";
    if (!$("key-dialog").open) $("key-dialog").showModal();
  }

  saveSettings() {
    const { mode, speaks } = this.page;
    const { microphoneId, speakerId } = this.page.devices;
    localStorage.setItem(SETTINGS, JSON.stringify({ mode, speaks, microphoneId, speakerId }));
  }

  restoreSettings() {
    const saved = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}");
    this.page.mode = saved.mode === "free" ? "free" : "press";
    this.page.speaks = saved.speaks ?? true;
    this.page.devices.microphoneId = saved.microphoneId ?? "";
    this.page.devices.speakerId = saved.speakerId ?? "";
    document.querySelector(`input[name=mode][value=${this.page.mode}]`).checked = true;
    $("text-only").querySelector("input").checked = !this.page.speaks;
  }
}

/** Whether the space bar means to talk: not where it types, or presses something else. */
function isForTalking(target) {
  return target.id === "talk" || !target.closest("input, textarea, select, button, summary");
}

function fill(select, devices, chosen) {
  const options = devices
    .filter(({ deviceId }) => deviceId !== "default" && deviceId !== "communications")
    .map(({ deviceId, label }, index) => new Option(label || `Device ${index + 1}`, deviceId));
  select.replaceChildren(new Option("The system's choice", ""), ...options);
  const isThere = options.some(({ value }) => value === chosen);
  select.value = isThere ? chosen : "";
}
