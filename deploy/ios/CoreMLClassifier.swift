// Classify a photograph with an .mlpackage that deploy/export.py wrote. Not compiled here; see coreml.md.
import CoreML
import Vision

final class CoreMLClassifier {
  private let model: VNCoreMLModel
  private let width: Double
  private let height: Double
  private let resizedWidth: Double  // what the resized image covers; its centre is cut out
  private let resizedHeight: Double

  /// The package is not one of deploy/export.py's: no image input, or no `crop_pct` in its metadata.
  struct UnknownPackage: Error {
    let package: URL
  }

  /// Xcode compiles a package in the app's target to NAME.mlmodelc; a downloaded one is compiled on the device first.
  init(package: URL, computeUnits: MLComputeUnits = .all) throws {
    let configuration = MLModelConfiguration()
    configuration.computeUnits = computeUnits
    let compiled = package.pathExtension == "mlmodelc" ? package : try MLModel.compileModel(at: package)
    let loaded = try MLModel(contentsOf: compiled, configuration: configuration)
    guard
      let input = loaded.modelDescription.inputDescriptionsByName["image"]?.imageConstraint,
      let metadata = loaded.modelDescription.metadata[.creatorDefinedKey] as? [String: String],
      let text = metadata["edge_sk.crop_pct"], let cropPct = Double(text)
    else { throw UnknownPackage(package: package) }
    (width, height) = (Double(input.pixelsWide), Double(input.pixelsHigh))
    (resizedWidth, resizedHeight) = ((width / cropPct).rounded(.down), (height / cropPct).rounded(.down))
    model = try VNCoreMLModel(for: loaded)
  }

  /// Labels with probabilities of a photograph, the likeliest first; Photograph.swift turns it upright.
  func classify(_ photo: URL) throws -> [(label: String, probability: Float)] {
    try classify(upright(photo))
  }

  /// The same for an upright image.
  func classify(_ image: CGImage) throws -> [(label: String, probability: Float)] {
    let request = VNCoreMLRequest(model: model)
    request.imageCropAndScaleOption = .centerCrop
    try VNImageRequestHandler(cgImage: centre(of: image)).perform([request])
    let found = request.results as? [VNClassificationObservation] ?? []
    return found.map { ($0.identifier, $0.confidence) }
  }

  /// What is left of the image when it is resized in proportion and the centre cut out; Vision does the resizing.
  private func centre(of image: CGImage) -> CGImage {
    let scale = min(Double(image.width) / resizedWidth, Double(image.height) / resizedHeight)
    let (wide, high) = (scale * width, scale * height)
    let (left, top) = ((Double(image.width) - wide) / 2, (Double(image.height) - high) / 2)
    return image.cropping(to: CGRect(x: left, y: top, width: wide, height: high))!
  }
}
