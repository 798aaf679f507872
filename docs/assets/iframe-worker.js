// The search runs in a Worker, which browsers refuse to pages opened from the disk. There a hidden frame does its work.
(() => {
  "use strict"
  if (location.protocol !== "file:") return

  const inside = `
    postMessage = value => parent.postMessage(value, "*")
    importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, failed) => {
      const script = document.createElement("script")
      script.src = url
      script.onload = done
      script.onerror = () => failed(new Error(url + " does not load"))
      document.body.appendChild(script)
    })), Promise.resolve())`

  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      const page = this.frame.contentWindow.document
      page.open()
      page.write(`<html><body><script>${inside}</script><script src="${encodeURI(url)}"></script></body></html>`)
      page.close()
      // until the script has run nobody listens to what is sent
      this.ready = new Promise(done => this.frame.contentWindow.addEventListener("load", done))
      this.heard = event => {
        if (event.source !== this.frame.contentWindow) return
        const copy = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(copy)
        if (this.onmessage) this.onmessage(copy)
      }
      addEventListener("message", this.heard)
    }

    postMessage(value) {
      // the frame's own postMessage is the worker's, which speaks to this page
      this.ready.then(() => window.postMessage.call(this.frame.contentWindow, value, "*"))
    }

    terminate() {
      removeEventListener("message", this.heard)
      this.frame.remove()
    }
  }
})()
